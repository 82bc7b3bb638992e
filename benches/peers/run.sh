#!/usr/bin/env bash
# Highwater beside NATS JetStream and Redis streams, as the distribution packages them, in turn on this machine. As root it
# installs nats-server and redis-server where they are missing (apt), without starting their services. Prints a table.
#
#   benches/peers/run.sh [--rounds 3] [--mebibytes 256] [--records 1000000] [--in-flight 1000]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
missing=()
for program in nats-server redis-server; do
    command -v "$program" >/dev/null || missing+=("$program")
done
if ((${#missing[@]})); then
    if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
        echo "not installed: ${missing[*]}" >&2
        exit 2
    fi
    { apt-get update && RUNLEVEL=1 apt-get install --yes --no-install-recommends "${missing[@]}"; } >/dev/null
fi
cargo build --release --locked --quiet -p highwater
cargo build --release --locked --quiet -p highwater-benches --bin peers
exec "${CARGO_TARGET_DIR:-target}/release/peers" "$@"
