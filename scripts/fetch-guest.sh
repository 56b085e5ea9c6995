#!/usr/bin/env bash
# fetch-guest.sh DIR VERSION ARCH: download a kernel that internal/lab/guest boots from
# this Debian's mirror. The packages are unpacked but not installed: vmlinuz, modules and
# busybox go to DIR/linux-VERSION-ARCH. Existing files are left unchanged. The VERSION
# "newest" is the latest of Debian's backports.
#
# The kernels are those that Debian builds for virtual machines; for 32-bit ARM
# only the one for boards exists. They have VXLAN as a module, so a guest
# without that file has no VXLAN.
set -euo pipefail

into=${1:?"usage: fetch-guest.sh DIR VERSION ARCH"}/linux-${2:?}-${3:?}
version=$2 arch=$3
# The files of an earlier version of this script may be incomplete.
if cmp -s "$0" "$into/complete"; then
	exit
fi
case $version in
5.10) suite=bullseye ;;
6.1) suite=bookworm ;; # the last before UDP segmentation on TUN, which came with 6.2
6.12) suite=trixie ;;
newest) suite="trixie trixie-backports" ;;
*) echo "fetch-guest.sh: no Debian is known to have Linux $version" >&2; exit 2 ;;
esac
case $arch in
arm) arch=armhf flavour=armmp ;;
*) flavour=cloud-$arch ;;
esac
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

mkdir -p "$tmp"/unpacked/usr/{bin,lib}
ln -s usr/bin usr/lib "$tmp/unpacked" # the same directories in newer releases
. "$(dirname "${BASH_SOURCE[0]}")/debian-apt.sh"
debian_apt "$tmp" "$suite" "$arch"
number=${version//./\\.}
kernel=$(apt-cache pkgnames linux-image- |
	{ grep -xE "linux-image-${number/newest/[0-9]+}(\.[0-9]+)*(-[0-9]+|\+deb[0-9]+)-$flavour" || true; } | sort -V | tail -n 1)
if [ -z "$kernel" ]; then
	echo "fetch-guest.sh: the mirror has no linux-image-$version.…-$flavour in $suite" >&2
	exit 1
fi
# In newer releases that package is empty and depends on these.
packages=("$kernel" busybox-static)
for part in base binary modules; do
	if apt-cache show "${kernel/image/$part}" >/dev/null 2>&1; then
		packages+=("${kernel/image/$part}")
	fi
done
(cd "$tmp" && apt-get download -q "${packages[@]}")
for package in "$tmp"/*.deb; do
	dpkg-deb --fsys-tarfile "$package" | tar -x -C "$tmp/unpacked" --keep-directory-symlink
done
rm -rf "$into"
mkdir -p "$into"
for vmlinuz in "$tmp"/unpacked/{boot/vmlinuz-*,lib/modules/*/vmlinuz}; do
	[ ! -e "$vmlinuz" ] || mv "$vmlinuz" "$into/vmlinuz"
done
mv "$tmp"/unpacked/bin/busybox "$into/busybox"
# Keep only the modules for networking; the others make up most of the size. The
# kernel loads them directly, so they must not be compressed.
for part in crypto lib net drivers/net drivers/virtio; do
	mkdir -p "$into/modules/$(dirname "$part")"
	mv "$tmp"/unpacked/lib/modules/*/kernel/"$part" "$into/modules/$part"
done
mv "$tmp"/unpacked/lib/modules/*/modules.builtin "$into/modules/modules.builtin"
find "$into/modules" -name '*.ko.xz' -exec xz -d {} +
cp "$0" "$into/complete"
