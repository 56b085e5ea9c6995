#!/usr/bin/env bash
# lint.sh MODULE...: the rules that every Go file of the modules in these
# directories must keep. All checks run; the exit code is 1 if one of them found
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

# tool NAME ARGUMENT...: run a tool that tools/go.mod pins.
tool() { go tool -modfile="$root/tools/go.mod" "$@"; }

# Raw system calls are for the packages that own a kind of descriptor.
raw_syscalls() {
	grep -rnE '\b(unix|syscall)\.(Raw)?Syscall6?\(' --include='*.go' \
		--exclude-dir=tun --exclude-dir=fastpath --exclude-dir=netlab --exclude=ethtool.go .
}

# Tests wait for effects, and advance virtual clocks, with internal/lab/testkit.
sleeps() { grep -rn 'time\.Sleep(' --include='*_test.go' .; }

# Links between pages, headings included.
links() { go run -C tools ./site "$root" "$root/bin/site"; }

imports() { go run -C tools ./imports check "$root/ARCHITECTURE.md"; }

# Log messages are constant, and keys are constants whose values internal/logging
# lists.
log_keys() {
	local keys
	keys=$(sed -n 's/^\tKey[A-Za-z0-9]* *= "\([^"]*\)".*/\1/p' internal/logging/logging.go | paste -sd,)
	tool sloglint -test=false -static-msg -kv-only -const-keys -allowed-keys="$keys" ./...
}

# Functions that no program reaches, except those that tests of other packages need.
dead_code() {
	tool deadcode -filter "$(go list -m)" ./cmd/... ./internal/reference |
		grep -vE '^internal/lab/|: (ParseFirewall|Feature\.Verify)$'
}

# Known vulnerabilities in code that the programs reach. The database is on the
# network (GOVULNDB names a mirror); where it cannot be reached, nothing is checked.
vulnerabilities() {
	local out
	if ! out=$(tool govulncheck -scan package ./encap 2>&1) && [[ $out == *"fetching vulnerabilities"* ]]; then
		echo "skipped: the vulnerability database cannot be reached"
		return
	fi
	tool govulncheck ./cmd/...
}

check "gofmt -l" quiet gofmt -l .
check "raw system calls only in tun, fastpath and netlab" quiet raw_syscalls
check "no test sleeps" quiet sleeps
check "imports as ARCHITECTURE.md has them" imports
check "links of the pages lead somewhere" links
check "sloglint: keys of internal/logging, constant messages" log_keys
check "deadcode: nothing that only tests call" quiet dead_code
check "govulncheck" vulnerabilities
# Each optional part is in packages of its own, so all at once and one at a time are enough.
for tags in noembed,nokube,noetcd,nobpf noembed nokube noetcd nobpf; do
	check "go vet -tags $tags" go vet -tags "$tags" ./cmd/... ./internal/daemon/... ./internal/backend/... ./internal/doctor/... ./lease/...
done
for m in "$@"; do
	check "$m: go vet" go vet -C "$m" ./...
	check "$m: staticcheck" go -C "$m" tool -modfile="$root/tools/go.mod" staticcheck ./...
	check "$m: go mod tidy -diff" go mod tidy -C "$m" -diff
done
exit $failed
