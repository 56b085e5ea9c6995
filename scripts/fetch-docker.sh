#!/usr/bin/env bash
# fetch-docker.sh DIR: download the dockerd that internal/lab/e2e runs from this
# Debian's package sources. The packages are unpacked but not installed, so nothing
# starts on this machine. DIR/bin gets dockerd, docker, containerd, runc and
# busybox, DIR/lib the libraries that they need. Existing files are left
# unchanged.
set -euo pipefail

dir=${1:?"usage: fetch-docker.sh DIR"}
packages=(docker.io containerd runc busybox-static libdevmapper1.02.1 libseccomp2)
# The files of an earlier version of this script may be incomplete.
if cmp -s "$0" "$dir/complete"; then
	exit
fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# As root, apt would download as a user that may not write here.
download() { (cd "$tmp" && apt-get download -q -o APT::Sandbox::User=root "${packages[@]}"); }

if ! download; then
	# The lists are missing or old; only root may update them.
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
