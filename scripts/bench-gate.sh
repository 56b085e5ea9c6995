#!/usr/bin/env bash
# bench-gate.sh BASE: the laboratory measures twilld of the git revision BASE and the
# present twilld (bin/twilld) in the same interleaved rounds and prints
# their ratios with spread. MINUTES (6) is how long it may take, LOADS and WIRES
# select what is measured. It needs root and an otherwise idle machine.
source "$(dirname "${BASH_SOURCE[0]}")/base-tree.sh" "$@"
echo "building $base" >&2
make -C "$work/base" build >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
bin/twill-lab bench --base-twilld "$work/base/bin/twilld" --paths twill --loads "${LOADS:-tcp1,tcp4,tcp1r,udp64,rr,rr-load}" \
	--wire "${WIRES:-super,mtu}" --rounds "${ROUNDS:-5}" --minutes "${MINUTES:-6}"
