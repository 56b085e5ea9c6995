#!/usr/bin/env bash
# fetch-etcd.sh DIR: the etcd of this Debian, years older than ours, unpacked and
# not installed, so that nothing of it starts on this machine: DIR/etcd. What is
# there already is left as it is.
set -euo pipefail

dir=${1:?"usage: fetch-etcd.sh DIR"}
if [ -x "$dir/etcd" ]; then
	exit
fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# As root, apt would download as a user that may not write here.
download() { (cd "$tmp" && apt-get download -q -o APT::Sandbox::User=root etcd-server); }

if ! download; then
	# Lists that are missing or old; only root may bring new ones.
	if [ "$(id -u)" != 0 ]; then
		echo "fetch-etcd.sh: run 'sudo apt-get update' and try again" >&2
		exit 1
	fi
	apt-get update -q
	download
fi
dpkg-deb -x "$tmp"/*.deb "$tmp/unpacked"
mkdir -p "$dir"
mv "$tmp/unpacked/usr/bin/etcd" "$dir/etcd"
