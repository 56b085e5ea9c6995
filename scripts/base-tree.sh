# source base-tree.sh BASE: the beginning of the scripts that compare the working tree
# with the git revision BASE. It changes to the top of the repository and sets base (the
# revision) and work (a directory, removed at the end) with BASE checked out in
# $work/base.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
base=${1:-}
script=${0##*/}
if [ -z "$base" ]; then
	echo "compare with which revision? make ${script%.sh} BASE=REVISION" >&2
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
