#!/usr/bin/env bash
# release-check.sh DIST [ARCH...]: check the release in the directory DIST.
#
# A second build of the checked-out commit, from another directory and with
# an empty build cache, must give the same bytes; every archive must match its
# checksum, and every program in it must be static and print the version and
# the commit, under qemu for other processors (needs qemu-user-static and binutils).
source "$(dirname "${BASH_SOURCE[0]}")/dist.sh" "$@"
commit=$(git rev-parse HEAD) # once, since a check takes long enough for another commit
want="$version+${commit:0:12}"

(cd "$dist" && sha256sum --check --strict --quiet SHA256SUMS)

git clone --quiet . "$tmp/clone"
git -C "$tmp/clone" checkout --quiet --detach "$commit"
GOCACHE=$tmp/cache TMPDIR=$tmp "$tmp/clone/scripts/release.sh" "$tmp/again" "${arches[@]}" >/dev/null
for archive in "$tmp"/again/*.tar.gz; do
	cmp "$archive" "$dist/${archive##*/}"
done
echo "built twice, with the same bytes: $(cd "$tmp/again" && echo *.tar.gz)"

# emulator ARCH: the program that runs binaries for it; empty for the host's.
emulator() {
	case $1 in
	"$(go env GOARCH)") ;;
	386) [ "$(go env GOARCH)" = amd64 ] || echo qemu-i386-static ;;
	arm64) echo qemu-aarch64-static ;;
	armv6 | armv7) echo qemu-arm-static ;;
	mipsle) echo qemu-mipsel-static ;;
	*) echo "qemu-$1-static" ;;
	esac
}

for archive in "$tmp"/again/*.tar.gz; do
	name=$(basename "$archive" .tar.gz)
	arch=${name##*-}
	tar -C "$tmp" -xzf "$archive"
	for program in twilld twilld-lite twilld-board twill; do
		binary=$tmp/$name/$program
		if readelf --program-headers --wide "$binary" | grep -q INTERP; then
			echo "$name: $program is not static" >&2
			exit 1
		fi
		got=$($(emulator "$arch") "$binary" --version)
		if [ "$got" != "${program%-*} $want" ]; then
			echo "$name: $program --version says \"$got\", want \"${program%-*} $want\"" >&2
			exit 1
		fi
		grep -q '"bomFormat": "CycloneDX"' "$tmp/$name/sbom/$program.cdx.json"
	done
	rm -r "${tmp:?}/$name"
	echo "$arch: static, runs, $want"
done
