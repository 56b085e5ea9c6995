#!/usr/bin/env bash
# fetch-program.sh DIR PACKAGE PROGRAM...: download a package of this Debian and put
# programs of it into DIR. The package is unpacked but not installed, so nothing starts on
# this machine. Existing programs are left unchanged.
set -euo pipefail

dir=${1:?"usage: fetch-program.sh DIR PACKAGE PROGRAM..."} package=$2
shift 2
missing=
for program; do
	[ -x "$dir/$program" ] || missing=1
done
[ "$missing" ] || exit 0
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# As root, apt would download as a user that may not write here.
download() { (cd "$tmp" && apt-get download -q -o APT::Sandbox::User=root "$package"); }

if ! download; then
	# The lists are missing or old; only root may update them.
	if [ "$(id -u)" != 0 ]; then
		echo "fetch-program.sh: run 'sudo apt-get update' and try again" >&2
		exit 1
	fi
	apt-get update -q
	download
fi
dpkg-deb -x "$tmp"/*.deb "$tmp/unpacked"
mkdir -p "$dir"
for program; do
	mv "$tmp/unpacked/usr/bin/$program" "$dir/$program"
done
