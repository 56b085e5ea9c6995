#!/usr/bin/env bash
# fetch-etcd.sh DIR: download this Debian's etcd, which is years older than ours, to
# DIR/etcd. The package is unpacked but not installed, so nothing starts on this machine.
# An existing file is left unchanged.
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
	# The lists are missing or old; only root may update them.
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
