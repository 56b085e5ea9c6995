#!/usr/bin/env bash
# bench-gate.sh BASE: the laboratory measures twilld of the git revision BASE and the
# present twilld (bin/twilld) in the same interleaved rounds and prints
# their ratios with spread. MINUTES (6) is how long it may take, LOADS and WIRES
# select what is measured. It needs root and an otherwise idle machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

base=${1:-}
if [ -z "$base" ]; then
	echo "compare with which revision? make bench-gate BASE=REVISION" >&2
	exit 2
fi
if ! commit=$(git rev-parse --verify --quiet "$base^{commit}"); then
	echo "$base is not a revision of this repository" >&2
	exit 2
fi

work=$(mktemp -d)
cleanup() {
	git worktree remove --force "$work/base" 2>/dev/null || true
	rm -rf "$work"
}
trap cleanup EXIT
git worktree add --quiet --detach "$work/base" "$commit"
echo "building $base" >&2
make -C "$work/base" build >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
bin/twill-lab bench --base-twilld "$work/base/bin/twilld" --paths twill --loads "${LOADS:-tcp1,tcp4,tcp1r,udp64,rr,rr-load}" \
	--wire "${WIRES:-super,mtu}" --rounds "${ROUNDS:-5}" --minutes "${MINUTES:-6}"
