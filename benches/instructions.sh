#!/usr/bin/env bash
# Instructions of the hot paths, counted by callgrind: against the recorded ones in benches/instructions.toml (the default),
# or recorded anew. Builds with the release profile. Exits with 1 when a path takes over 5 % more than recorded.
#
#   benches/instructions.sh [check|record|identity|profile PATH] [--only PREFIX] [--runs N]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! command -v valgrind >/dev/null; then
    echo "valgrind is not installed: the instructions of the hot paths are not checked in this run"
    [[ "${1:-check}" == check ]] && exit 0 || exit 2
fi
cargo build --release --locked --quiet -p highwater-benches --bin instructions
exec "${CARGO_TARGET_DIR:-target}/release/instructions" "${@:-check}"
