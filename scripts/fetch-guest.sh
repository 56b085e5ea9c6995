#!/usr/bin/env bash
# fetch-guest.sh DIR VERSION ARCH: a kernel that internal/lab/guest boots, from this
# Debian's mirror, unpacked and not installed: vmlinuz, modules and busybox in
# DIR/linux-VERSION-ARCH. What is there already is left as it is.
#
# The kernels are those that Debian builds for virtual machines; for 32-bit ARM
# there is only that of the boards. They have VXLAN as a module, so a guest that
# has not its file has no VXLAN.
set -euo pipefail

into=${1:?"usage: fetch-guest.sh DIR VERSION ARCH"}/linux-${2:?}-${3:?}
version=$2 arch=$3
if [ -e "$into/complete" ]; then
	exit
fi
case $version in
5.10) suite=bullseye ;;
6.1) suite=bookworm ;; # the last before UDP segmentation on TUN, of 6.2
6.12) suite=trixie ;;
*) echo "fetch-guest.sh: no Debian is known to have Linux $version" >&2; exit 2 ;;
esac
case $arch in
arm) arch=armhf flavour=armmp ;;
*) flavour=cloud-$arch ;;
esac
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# mirror: where this system has its Debian packages from.
mirror() {
	apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | sed -n 1p
}

uri=$(mirror)
if [ -z "$uri" ] && [ "$(id -u)" = 0 ]; then
	apt-get update -q # there may be no lists yet
	uri=$(mirror)
fi
if [ -z "$uri" ]; then
	echo "fetch-guest.sh: APT has no lists of a Debian mirror: run 'apt-get update' as root, on a Debian" >&2
	exit 1
fi

# An APT with lists of that release and architecture and no others. The system's
# own are left alone; its proxies and the like are in force.
mkdir -p "$tmp"/{lists,cache,unpacked/usr/{bin,lib}}
ln -s usr/bin usr/lib "$tmp/unpacked" # the same place in newer releases
: >"$tmp/status"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [arch=$arch signed-by=$keys] $uri $suite main" >"$tmp/sources.list"
cat >"$tmp/apt.conf" <<-CONF
	APT::Architecture "$arch";
	APT::Architectures { "$arch"; };
	APT::Sandbox::User "root"; // another user may not write here
	Dir::Etc::SourceList "$tmp/sources.list";
	Dir::Etc::SourceParts "/dev/null";
	Dir::Etc::Preferences "/dev/null";
	Dir::Etc::PreferencesParts "/dev/null";
	Dir::State "$tmp";
	Dir::State::Lists "$tmp/lists";
	Dir::State::Status "$tmp/status";
	Dir::Cache "$tmp/cache";
	Acquire::Languages "none";
CONF
export APT_CONFIG=$tmp/apt.conf
apt-get update -q
kernel=$(apt-cache pkgnames "linux-image-$version." |
	{ grep -xE "linux-image-[0-9.]+(-[0-9]+|\+deb[0-9]+)-$flavour" || true; } | sort -V | tail -n 1)
if [ -z "$kernel" ]; then
	echo "fetch-guest.sh: $uri has no linux-image-$version.…-$flavour in $suite" >&2
	exit 1
fi
(cd "$tmp" && apt-get download -q "$kernel" busybox-static)
for package in "$tmp"/*.deb; do
	dpkg-deb --fsys-tarfile "$package" | tar -x -C "$tmp/unpacked" --keep-directory-symlink
done
rm -rf "$into"
mkdir -p "$into"
mv "$tmp"/unpacked/boot/vmlinuz-* "$into/vmlinuz"
mv "$tmp"/unpacked/bin/busybox "$into/busybox"
# Of the modules those that networks take; the others are most of the size. The
# kernel is given them as they are, so they must not be compressed.
for part in crypto lib net drivers/net drivers/virtio; do
	mkdir -p "$into/modules/$(dirname "$part")"
	mv "$tmp"/unpacked/lib/modules/*/kernel/"$part" "$into/modules/$part"
done
mv "$tmp"/unpacked/lib/modules/*/modules.builtin "$into/modules/modules.builtin"
find "$into/modules" -name '*.ko.xz' -exec xz -d {} +
touch "$into/complete"
