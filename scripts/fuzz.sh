#!/usr/bin/env bash
# fuzz.sh TIME: run each fuzz target of the module for TIME, one after the other. A
# failing input is written to the package's testdata/fuzz, and the next target runs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
failed=0

for pkg in $(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...); do
	for target in $(go test -list '^Fuzz' "$pkg" | grep '^Fuzz' || true); do
		echo "== $target, $pkg"
		go test -run='^$' -fuzz="^$target\$" -fuzztime="$1" "$pkg" || failed=1
	done
done
exit $failed
