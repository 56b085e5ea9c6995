#!/usr/bin/env bash
# bench-compare.sh BASE PACKAGE...: benchmarks of the packages at the git
# revision BASE and as they are now, uncommitted changes included, and what
# benchstat makes of the difference. Both take turns, so that whatever else the
# machine does falls on both alike. COUNT (10) is how often, BENCHTIME (100ms)
# how long each benchmark runs, BENCH (.) which ones do.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

base=${1:-}
shift || true
if [ -z "$base" ]; then
	echo "compare with which revision? make bench-compare BASE=REVISION" >&2
	exit 2
fi
if ! commit=$(git rev-parse --verify --quiet "$base^{commit}"); then
	echo "$base is no revision of this repository" >&2
	exit 2
fi

work=$(mktemp -d)
cleanup() {
	git worktree remove --force "$work/base" 2>/dev/null || true
	rm -rf "$work"
}
trap cleanup EXIT
git worktree add --quiet --detach "$work/base" "$commit"

# compile TREE NAME PACKAGE: a test binary, none if the package is not there.
compile() {
	[ -d "$1/$3" ] || return 0
	go test -C "$1" -c -o "$work/$2${3//\//-}.test" "$3"
}

# run TREE NAME PACKAGE: the benchmarks once more.
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
