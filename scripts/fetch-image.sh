#!/usr/bin/env bash
# fetch-image.sh DIR ARCH: download the Debian packages that the container image is made
# of, for ARCH by Go's name, from this system's mirror to DIR/*.deb. They are Debian
# 13's, the first release with riscv64, whatever this system runs. Existing files
# are left unchanged; remove DIR to get newer ones.
set -euo pipefail

dir=${1:?"usage: fetch-image.sh DIR ARCH"}
arch=${2:?"usage: fetch-image.sh DIR ARCH"}
# The packages that twilld, an init container or an operator needs, and their
# libraries. tools/image fails if one is missing.
packages=(
	base-files netbase ca-certificates busybox-static
	iptables libip4tc2 libip6tc2 libxtables12 libnetfilter-conntrack3 libnfnetlink0
	nftables libnftables1 libjansson4 libgmp10 libedit2 libtinfo6 libbsd0 libmd0
	libmnl0 libnftnl11 libc6 libgcc-s1 gcc-14-base
)
# The files of an earlier version of this script may be incomplete.
if cmp -s "$0" "$dir/complete"; then
	exit
fi
case $arch in
arm) arch=armhf ;;
esac
. "$(dirname "${BASH_SOURCE[0]}")/debian-apt.sh"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir "$tmp/debs"
debian_apt "$tmp" trixie "$arch" security
(cd "$tmp/debs" && apt-get download -q "${packages[@]}")
rm -rf "$dir"
mkdir -p "$dir"
mv "$tmp"/debs/*.deb "$dir"
cp "$0" "$dir/complete"
