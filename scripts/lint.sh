#!/usr/bin/env bash
# lint.sh MODULE...: what must hold of every Go file, for the module in each of
# the directories. All checks run; the exit code says whether one found
# something.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
failed=0

# check NAME COMMAND...: COMMAND must succeed.
check() {
	echo "$1"
	shift
	"$@" || failed=1
}

# quiet COMMAND...: COMMAND must print nothing.
quiet() {
	local out
	out=$("$@" 2>&1)
	[ -z "$out" ] || { echo "$out"; return 1; }
}

# Raw system calls are for the packages that own a kind of descriptor.
raw_syscalls() {
	grep -rnE '\b(unix|syscall)\.(Raw)?Syscall6?\(' --include='*.go' \
		--exclude-dir=tun --exclude-dir=fastpath --exclude-dir=netlab .
}

check "gofmt -l" quiet gofmt -l .
check "raw system calls only in tun, fastpath and netlab" quiet raw_syscalls
for m in "$@"; do
	check "$m: go vet" go vet -C "$m" ./...
	check "$m: staticcheck" go -C "$m" tool -modfile="$root/tools/go.mod" staticcheck ./...
	check "$m: go mod tidy -diff" go mod tidy -C "$m" -diff
done
exit $failed
