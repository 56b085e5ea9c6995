#!/usr/bin/env bash
# release.sh DIST [ARCH...]: build the release of the commit that is checked out into
# the directory DIST: for each architecture an archive with static binaries, the
# systemd unit, documents and an SBOM (CycloneDX) for each binary, and SHA256SUMS
# over the archives.
#
# The same commit and the same Go release give the same bytes, on any machine and in
# any directory: everything is built in a separate clone, so that neither uncommitted
# files nor the environment affect the result. "make release-check" builds twice and
# compares.
source "$(dirname "${BASH_SOURCE[0]}")/dist.sh" "$@"
mkdir -p "$dist"
[ ${#arches[@]} != 0 ] || arches=(amd64 arm64 armv7 armv6 riscv64 mips mipsle 386 ppc64le s390x)

if [ -n "$(git status --porcelain)" ]; then
	echo "release.sh: there are uncommitted changes; the release is made of the commit without them" >&2
fi

commit=$(git rev-parse HEAD)

# The tag in the clone gives the main module its version, before the commit is tagged.
git clone --quiet --no-hardlinks . "$tmp/src"
git -C "$tmp/src" -c advice.detachedHead=false checkout --quiet --detach "$commit"
git -C "$tmp/src" tag --force "v$version" >/dev/null
cd "$tmp/src"

# The settings of every Go build. C is never compiled.
for variable in $(env | sed -n 's/^\(GO[A-Z0-9]*\)=.*/\1/p'); do
	case $variable in
	GOPATH | GOCACHE | GOMODCACHE | GOROOT | GOTMPDIR | GOPROXY | GONOPROXY | GOPRIVATE | GOSUMDB | GONOSUMDB | GOTOOLCHAIN | GOMAXPROCS) ;;
	*) unset "$variable" ;;
	esac
done
export GOENV=off CGO_ENABLED=0 GOOS=linux

# target ARCH: the environment variables that make the go command build for it.
target() {
	case $1 in
	armv6 | armv7) echo "GOARCH=arm GOARM=${1#armv}" ;;
	mips | mipsle) echo "GOARCH=$1 GOMIPS=softfloat" ;; # most of these boards have no FPU
	*) echo "GOARCH=$1" ;;
	esac
}

# tags VARIABLE: the build tags that the Makefile has under this name.
tags() { make --no-print-directory "print-$1"; }

# The flag of the compiler that the Makefile has for twill.
read -ra small <<<"$(make --no-print-directory print-SMALL)"

# program NAME PACKAGE TAGS FLAGS...: build it into $dir, and write its SBOM beside it.
program() {
	go build -trimpath -buildvcs=true -ldflags='-s -w' -tags "$3" "${@:4}" -o "$dir/$1" "./cmd/$2"
	GOFLAGS="-tags=$3" "$tmp/cyclonedx-gomod" app -json -licenses -std -noserial -notimestamp \
		-main "cmd/$2" -output "$dir/sbom/$1.cdx.json" . 2>"$tmp/sbom.log" || { cat "$tmp/sbom.log" >&2; exit 1; }
}

go build -C tools/release -trimpath -buildvcs=false -o "$tmp/cyclonedx-gomod" \
	github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod

epoch=$(git log -1 --format=%ct)
for arch in "${arches[@]}"; do
	name=twill-$version-linux-$arch
	dir=$tmp/$name
	mkdir -p "$dir/sbom"
	(
		for variable in $(target "$arch"); do export "${variable?}"; done
		program twilld twilld grpcnotrace
		program twilld-lite twilld "grpcnotrace,$(tags LITE)"
		program twilld-board twilld "grpcnotrace,$(tags BOARD)"
		program twill twill "grpcnotrace,$(tags TWILL)" "${small[@]}"
	)
	cp -r LICENSE README.md CHANGELOG.md docs deploy "$dir/"
	find "$dir/deploy" -name '*.go' -delete
	chmod -R u=rwX,go=rX "$dir"
	tar -C "$tmp" --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner --format=ustar \
		-cf - "$name" | gzip -9n >"$dist/$name.tar.gz"
	rm -r "$dir"
	echo "$name.tar.gz"
done
cd "$dist"
sha256sum twill-"$version"-linux-*.tar.gz >SHA256SUMS
