#!/usr/bin/env bash
# bench-compare.sh BASE PACKAGE...: run the packages' benchmarks at the git revision
# BASE and in the working tree, uncommitted changes included, and compare them with
# benchstat. The two take turns, so that other load on the machine affects both alike.
# Environment: COUNT (10) runs of BENCHTIME (100ms) for the benchmarks that match
# BENCH (.).
source "$(dirname "${BASH_SOURCE[0]}")/base-tree.sh" "$@"
shift

# compile TREE NAME PACKAGE: build the test binary, if the package exists there.
compile() {
	[ -d "$1/$3" ] || return 0
	go test -C "$1" -c -o "$work/$2${3//\//-}.test" "$3"
}

# run TREE NAME PACKAGE: run the benchmarks once.
run() {
	local binary="$work/$2${3//\//-}.test"
	[ -x "$binary" ] || return 0
	(cd "$1/$3" && "$binary" -test.run '^$' -test.bench "${BENCH:-.}" -test.benchmem \
		-test.benchtime "${BENCHTIME:-100ms}") >>"$work/$2.txt"
}

for package in "$@"; do
	compile "$work/base" base "$package"
	compile "$PWD" now "$package"
done
for ((i = 1; i <= ${COUNT:-10}; i++)); do
	printf '\r%d of %d ' "$i" "${COUNT:-10}" >&2
	for package in "$@"; do
		run "$work/base" base "$package"
		run "$PWD" now "$package"
	done
done
printf '\r\033[K' >&2
go tool -modfile=tools/go.mod benchstat "$base=$work/base.txt" "now=$work/now.txt"
