#!/usr/bin/env bash
# fetch-docker.sh DIR: the dockerd that internal/lab/e2e runs, from the package
# sources of this Debian, unpacked and not installed, so that nothing of it
# starts on this machine: DIR/bin with dockerd, docker, containerd, runc and
# busybox, DIR/lib with libraries that they need. What is there already is left
# as it is.
set -euo pipefail

dir=${1:?"usage: fetch-docker.sh DIR"}
packages=(docker.io containerd runc busybox-static libdevmapper1.02.1 libseccomp2)
# What an earlier version of this script has fetched may lack something.
if cmp -s "$0" "$dir/complete"; then
	exit
fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# As root, apt would download as a user that may not write here.
download() { (cd "$tmp" && apt-get download -q -o APT::Sandbox::User=root "${packages[@]}"); }

if ! download; then
	# Lists that are missing or old; only root may bring new ones.
	if [ "$(id -u)" != 0 ]; then
		echo "fetch-docker.sh: run 'sudo apt-get update' and try again" >&2
		exit 1
	fi
	apt-get update -q
	download
fi
for package in "$tmp"/*.deb; do
	dpkg-deb -x "$package" "$tmp/root"
done
rm -rf "$dir"
mkdir -p "$dir/bin" "$dir/lib"
for program in usr/sbin/dockerd usr/sbin/runc usr/bin/runc usr/bin/docker usr/bin/docker-init \
	usr/sbin/docker-proxy usr/bin/docker-proxy usr/bin/containerd usr/bin/containerd-shim-runc-v2 usr/bin/ctr \
	bin/busybox usr/bin/busybox; do
	if [ -f "$tmp/root/$program" ] && [ ! -L "$tmp/root/$program" ]; then
		mv "$tmp/root/$program" "$dir/bin/"
	fi
done
find "$tmp/root" -name 'lib*.so.*' -exec mv -t "$dir/lib" {} +
cp "$0" "$dir/complete"
