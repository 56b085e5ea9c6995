#!/usr/bin/env bash
# packages.sh DIST [ARCH...]: make deb and rpm packages of the release archives in the
# directory DIST, for all of them or only for the given architectures.
source "$(dirname "${BASH_SOURCE[0]}")/dist.sh" "$@"
VERSION=$version # for nfpm
if [ ${#arches[@]} = 0 ]; then
	for archive in "$dist/twill-$VERSION"-linux-*.tar.gz; do
		archive=${archive%.tar.gz}
		arches+=("${archive##*-}")
	done
fi
go build -o "$tmp/" ./cmd/twill ./cmd/twilld # this machine's, for what they print about themselves
CGO_ENABLED=0 go build -C tools/release -o "$tmp/nfpm" github.com/goreleaser/nfpm/v2/cmd/nfpm

for arch in "${arches[@]}"; do
	tar -C "$tmp" -xzf "$dist/twill-$VERSION-linux-$arch.tar.gz"
	root=$tmp/twill-$VERSION-linux-$arch
	sed 's#/usr/local/bin/#/usr/bin/#' "$root/deploy/systemd/twilld.service" >"$root/twilld.service"
	for shell in bash zsh fish; do "$tmp/twill" completion $shell >"$root/twill.$shell"; done
	"$tmp/twill" man | gzip -9n >"$root/twill.8.gz"
	{
		echo ".TH TWILLD 8 \"\" \"twilld $VERSION\"
.SH NAME
twilld \\- lease a pod subnet and carry the packets of pods to other nodes
.SH DESCRIPTION
.nf"
		"$tmp/twilld" --help | sed 's/\\/\\e/g; s/-/\\-/g; s/^[.'"'"']/\\\&&/'
	} | gzip -9n >"$root/twilld.8.gz"
	SOURCE_DATE_EPOCH=$(stat -c %Y "$root/LICENSE") # the commit's time, in a release
	ARCH=${arch/#armv/arm} # nfpm's names for armv6 and armv7
	export VERSION ARCH SOURCE_DATE_EPOCH
	for format in deb rpm; do
		(cd "$root" && "$tmp/nfpm" package --config deploy/packages/nfpm.yaml --packager $format --target "$dist" >/dev/null)
	done
	rm -r "$root"
done
