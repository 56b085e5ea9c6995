#!/usr/bin/env bash
# fetch-guest.sh DIR: the kernel that internal/guest boots, from the package
# sources of this Debian, unpacked and not installed: DIR/vmlinuz, DIR/modules
# and DIR/busybox. What is there already is left as it is.
#
# It is Linux 6.1, that of Debian 12, built for virtual machines: before 6.2 TUN
# had no UDP segmentation, and VXLAN is a module, so a guest that has not its
# file has no VXLAN.
set -euo pipefail

dir=${1:?"usage: fetch-guest.sh DIR"}
if [ -e "$dir/complete" ]; then
	exit
fi
arch=$(dpkg --print-architecture)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# newest: the name of the newest kernel in the package lists.
newest() {
	apt-cache pkgnames linux-image-6.1. |
		{ grep -xE "linux-image-6\.1\.[0-9]+-[0-9]+-cloud-$arch" || true; } | sort -V | tail -n 1
}

# download: fetch the packages that the lists name.
download() {
	local kernel
	kernel=$(newest)
	if [ -z "$kernel" ]; then
		echo "fetch-guest.sh: the package lists have no linux-image-6.1.…-cloud-$arch, the kernel of Debian 12" >&2
		return 1
	fi
	# As root, apt would download as a user that may not write here.
	(cd "$tmp" && apt-get download -q -o APT::Sandbox::User=root "$kernel" busybox-static)
}

if ! download; then
	# Lists that are missing or old; only root may bring new ones.
	if [ "$(id -u)" != 0 ]; then
		echo "fetch-guest.sh: run 'sudo apt-get update' and try again" >&2
		exit 1
	fi
	apt-get update -q
	download
fi
for package in "$tmp"/*.deb; do
	dpkg-deb -x "$package" "$tmp"
done
rm -rf "$dir"
mkdir -p "$dir"
mv "$tmp"/boot/vmlinuz-* "$dir/vmlinuz"
mv "$tmp"/lib/modules/*/kernel "$dir/modules"
mv "$tmp/bin/busybox" "$dir/busybox"
touch "$dir/complete"
