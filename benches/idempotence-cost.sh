#!/usr/bin/env bash
# What idempotent producers cost the broker in instructions, over the whole way of a batch: connection, checks, verdict,
# append, answer. Needs valgrind and a release build (`cargo build --release`).
#
#   benches/idempotence-cost.sh [BATCH_BYTES…]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
program=${HIGHWATER_PROGRAM:-target/release/highwater}
directory=$(mktemp -d)
broker=
finish() {
    [[ -z "$broker" ]] || kill "$broker" 2>/dev/null || true
    [[ -z "$broker" ]] || wait "$broker" 2>/dev/null || true
    rm -rf "$directory"
}
trap finish EXIT

# Instructions of the broker for `$2` records in batches of `$1` bytes; `$3`: more for the bench.
instructions() {
    local batch=$1 records=$2 more=${3:-} data
    data=$(mktemp -d -p "$directory")/data
    valgrind --tool=callgrind --callgrind-out-file="$data.out" "$program" broker --node-id 1 --listen 127.0.0.1:0 \
        --data-dir "$data" --port-file "$data.port" >"$data.log" 2>&1 &
    broker=$!
    for _ in $(seq 600); do [[ -s "$data.port" ]] && break; sleep 0.1; done
    local address
    address=$(sed -n 's/.*"listen":"\([^"]*\)".*/\1/p' "$data.port")
    export HIGHWATER_BOOTSTRAP=$address
    "$program" topic create bench --partitions 1 --replication 1 --config durability=os >/dev/null
    # Batches one after another: how many queue up must not depend on the speed of the moment.
    # shellcheck disable=SC2086
    "$program" bench produce --topic bench --records "$records" --size 1000 --batch-bytes "$batch" \
        --in-flight "$((batch * 2))" $more --output json >"$data.json"
    kill "$broker"
    wait "$broker" || true
    broker=
    sed -n 's/.*Collected : //p' "$data.log"
}

printf '%12s %16s %16s %16s %8s\n' 'batch bytes' 'instr a batch' 'idempotent' 'difference' 'cost'
for batch in "${@:-65536}"; do
    per=$(((batch - 100) / 1012))
    few=$((200 * per)) many=$((2200 * per))
    plain=$((($(instructions "$batch" $many --no-idempotence) - $(instructions "$batch" $few --no-idempotence)) / 2000))
    sure=$((($(instructions "$batch" $many) - $(instructions "$batch" $few)) / 2000))
    printf '%12d %16d %16d %16d %7.2f%%\n' "$batch" "$plain" "$sure" $((sure - plain)) \
        "$(echo "100 * ($sure - $plain) / $plain" | bc -l)"
done
