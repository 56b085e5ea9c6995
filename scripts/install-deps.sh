#!/usr/bin/env bash
# Install the Debian packages that "make test" needs and this machine lacks.
# The product needs none of them.
set -euo pipefail

missing=()

# need PACKAGES WHY CHECK...: remember PACKAGES if CHECK fails.
need() {
	local packages=$1 why=$2
	shift 2
	if ! "$@" >/dev/null 2>&1; then
		echo "missing: $packages, for $why"
		# shellcheck disable=SC2206 # a list of words by intention
		missing+=($packages)
	fi
}

compiles() { echo '#include <stdlib.h>' | cc -E -; }

need "git"              "the version in the binaries"                      command -v git
need "gcc libc6-dev"    "the race detector and flannel's forwarding loop"  compiles
need "nftables"         "wires that lose packets, and firewall rules"      command -v nft
need "iptables"         "firewall rules, with both kinds of iptables"      command -v iptables-legacy
need "systemd"          "checks of the service unit"                       command -v systemd-analyze
need "rpm"              "checks of the rpm package"                        command -v rpm
need "zsh"              "completion of command lines"                      command -v zsh
need "fish"             "completion of command lines"                      command -v fish
need "groff-base"       "the manual pages"                                 command -v groff
need "qemu-user-static" "unit tests of the packet code on arm and arm64"   command -v qemu-aarch64-static
need "qemu-system-x86"  "nodes with another kernel"                        command -v qemu-system-x86_64
need "qemu-system-arm"  "nodes with another kernel, on arm and arm64"      command -v qemu-system-aarch64

if [ ${#missing[@]} = 0 ]; then
	echo "nothing is missing"
	exit
fi
if ! command -v apt-get >/dev/null; then
	echo "this system has no apt-get: install these with its package manager and run again" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "not root: run 'sudo apt-get install ${missing[*]}' and try again" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends "${missing[@]}"
