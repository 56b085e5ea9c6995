# source dist.sh DIST [ARCH...]: the beginning of the scripts that make or read a
# release. It changes to the top of the repository and sets dist (the directory of the
# archives), arches (those that were given), version, and tmp (removed at the end).
# shellcheck shell=bash disable=SC2034
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# = 0 ]; then
	echo "usage: ${0##*/} DIST [ARCH...]" >&2
	exit 2
fi
dist=$(realpath "$1")
arches=("${@:2}")
version=$(sed -n 's/^const Release = "\(.*\)"$/\1/p' internal/version/version.go)
tmp=$(mktemp -d)
trap 'chmod -R u+w "$tmp"; rm -rf "$tmp"' EXIT # Go's module cache is read-only
