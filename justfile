# `just verify` is the gate and writes nothing; `just fix` writes.

set shell := ["bash", "-euo", "pipefail", "-c"]

# List the recipes.
default:
    @just --list

# Everything that must hold before a change goes in; changes no file of the tree.
verify:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
    cargo test --workspace --locked
    command -v cargo-deny >/dev/null && cargo deny check licenses bans sources || echo "cargo-deny is not installed: licences, bans and sources were not checked"

# What a machine can mend: formatting, simple lints, golden files that were meant to change are NOT among it (see `bless`).
fix:
    cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
    cargo fmt --all

# Rewrite golden files after a change of format that is meant. Read the difference before you commit it.
bless:
    UPDATE_EXPECT=1 cargo test -p highwater-protocol
    git diff --stat -- protocol/tests/golden docs

# The tests, as the README says.
test *ARGS:
    cargo test --workspace {{ARGS}}

# Fixed-seed histories with another first seed, for as long as you like: `just sim 100000 5000`.
sim SEED="1000" COUNT="2000":
    HIGHWATER_SEED={{SEED}} HIGHWATER_HISTORIES={{COUNT}} cargo test -p highwater-tests --release --test log_histories --test broker_histories --test cleaning_histories

# Coverage-guided fuzzing of every decoder with libFuzzer: `just fuzz 600` is ten minutes.
fuzz SECONDS="60":
    protocol/fuzz/run {{SECONDS}}

# Seeded mutations of the kept inputs, one decoder or all, with a fresh seed. Inputs that fail are kept in the corpus.
mutations SECONDS="60" TARGET="all":
    HIGHWATER_FUZZ_SECONDS={{SECONDS}} HIGHWATER_FUZZ_TARGET={{TARGET}} cargo test -p highwater-protocol --release --features zstd --test fuzz -- --nocapture

# What this machine can do at best, without Highwater.
ceiling *ARGS:
    cargo run --release -p highwater-benches --bin ceiling -- {{ARGS}}

# Highwater beside the ceilings, alternately in the same run.
bench *ARGS:
    cargo build --release -p highwater
    cargo run --release -p highwater-benches --bin compare -- {{ARGS}}

# Three brokers beside the replicated ceiling, alternately in the same run.
bench-replicated *ARGS:
    cargo build --release -p highwater
    cargo run --release -p highwater-benches --bin compare -- --replicated {{ARGS}}

# A thousand consumers of the same records beside the fan-out ceiling, alternately in the same run.
bench-fanout *ARGS:
    cargo build --release -p highwater
    cargo run --release -p highwater-benches --bin compare -- --fanout {{ARGS}}

# Latencies beside the raw ones, alternately in the same run.
bench-latency *ARGS:
    cargo build --release -p highwater
    cargo run --release -p highwater-benches --bin latency -- {{ARGS}}

# Ten thousand partitions beside one, in turns; a broker that only has them; its start with them.
bench-partitions *ARGS:
    cargo build --release -p highwater
    cargo run --release -p highwater-benches --bin partitions -- {{ARGS}}

# Instructions of the hot paths under callgrind, against the recorded ones: `just instructions`, `just instructions record`.
instructions *ARGS:
    benches/instructions.sh {{ARGS}}

# Wall time of the same paths (criterion).
micro *ARGS:
    cargo bench -p highwater-benches --features criterion --bench paths -- {{ARGS}}

# From spawn to ready, empty and after `kill -9` with a long log; memory when idle.
restart *ARGS:
    cargo build --release -p highwater
    cargo run --release -p highwater-benches --bin restart -- {{ARGS}}

# Whether reading old segments from the disk delays other connections.
cold-read *ARGS:
    cargo build --release -p highwater
    cargo run --release -p highwater-benches --bin cold_read -- {{ARGS}}

# `kill -9` of the real broker under load, as often as you like.
kills COUNT="200" SEED="1":
    HIGHWATER_KILLS={{COUNT}} HIGHWATER_SEED={{SEED}} cargo test -p highwater-tests --release --test crash_kill9 -- --nocapture

# `kill -9` of leaders in a cluster of three, with the times until they are served again.
failover COUNT="100" SEED="1":
    HIGHWATER_KILLS={{COUNT}} HIGHWATER_SEED={{SEED}} cargo test -p highwater-tests --release --test cluster failover:: -- --nocapture --include-ignored

# Cuts of the network in all directions, and pauses of brokers. Cuts need root, iproute2 and nftables.
partitions COUNT="26" SEED="1":
    HIGHWATER_FAULTS={{COUNT}} HIGHWATER_SEED={{SEED}} cargo test -p highwater-tests --release --test cluster partitions:: -- --nocapture --include-ignored

# All three brokers of a cluster killed at once.
all-killed COUNT="30" SEED="1":
    HIGHWATER_KILLS={{COUNT}} HIGHWATER_SEED={{SEED}} cargo test -p highwater-tests --release --test cluster all_killed:: -- --nocapture --include-ignored

# Producers whose connections are cut, whose acknowledgements are lost and whose leaders are killed.
exactly-once CUTS="1000" KILLS="50" SEED="1":
    HIGHWATER_CUTS={{CUTS}} HIGHWATER_KILLS={{KILLS}} HIGHWATER_SEED={{SEED}} cargo test -p highwater-tests --release --test cluster exactly_once:: -- --nocapture --include-ignored

# Brokers stopped and started again one after the other, under load, with the pauses that clients see.
rolling-restart ROUNDS="3":
    HIGHWATER_ROUNDS={{ROUNDS}} cargo test -p highwater-tests --release --test cluster rolling_restart:: -- --nocapture --include-ignored

# A fourth broker joins three with this many partitions, under load; drained and removed again.
rebalance PARTITIONS="300":
    HIGHWATER_PARTITIONS={{PARTITIONS}} cargo test -p highwater-tests --release --test cluster rebalance:: -- --nocapture --include-ignored

# The broker that coordinates a consumer group killed again and again while its members commit.
group-kills COUNT="50" SEED="1":
    HIGHWATER_KILLS={{COUNT}} HIGHWATER_SEED={{SEED}} cargo test -p highwater-tests --release --test groups coordinator_kills:: -- --nocapture

# So many members in one group, and as many groups, on one broker: memory and processor time.
group-members COUNT="1000" SECONDS="30":
    HIGHWATER_MEMBERS={{COUNT}} HIGHWATER_SECONDS={{SECONDS}} cargo test -p highwater-tests --release --test groups many_members:: -- --nocapture

# So many commits, and how long it takes to read what is left of them.
group-replay COMMITS="10000000":
    HIGHWATER_COMMITS={{COMMITS}} cargo test -p highwater-tests --release --test groups replay:: -- --nocapture

# `kill -9` of the real broker in the middle of compaction, and a compacted topic of this many records.
compaction KILLS="50" RECORDS="10000000" SEED="1":
    HIGHWATER_KILLS={{KILLS}} HIGHWATER_RECORDS={{RECORDS}} HIGHWATER_SEED={{SEED}} cargo test -p highwater-tests --release --test compaction -- --nocapture --test-threads 1

# Members of a group joining, leaving, crashing and being paused at a high rate, for so many seconds; everything is counted.
group-churn SECONDS="600" RATE="100000" SEED="1":
    HIGHWATER_SECONDS={{SECONDS}} HIGHWATER_RATE={{RATE}} HIGHWATER_SEED={{SEED}} cargo test -p highwater-tests --release --test groups_client churn:: -- --nocapture

# The gaps between records of partitions that stay while members come and go, beside those of a run without.
group-gaps ROUNDS="20":
    HIGHWATER_ROUNDS={{ROUNDS}} cargo test -p highwater-tests --release --test groups_client gaps:: -- --nocapture

# A real text of this many lines through the command line and back.
text LINES="500000":
    HIGHWATER_LINES={{LINES}} cargo test -p highwater-tests --release --test real_text -- --nocapture

# Malformed frames against the real broker.
frames COUNT="100000" SEED="1":
    HIGHWATER_FRAMES={{COUNT}} HIGHWATER_SEED={{SEED}} cargo test -p highwater-tests --release --test malformed_frames -- --nocapture

# A local cluster to play with, until Ctrl-C.
cluster *ARGS:
    cargo run --release -- quickstart {{ARGS}}

# Takes each rule out, one at a time, and expects its named test to fail.
mutate *ARGS:
    tests/mutate/run.sh {{ARGS}}
