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
    HIGHWATER_SEED={{SEED}} HIGHWATER_HISTORIES={{COUNT}} cargo test -p highwater-tests --release -- histories

# Mutate inputs of every decoder for a while: `just fuzz 600` is ten minutes. Inputs that fail are kept in protocol/fuzz/corpus.
fuzz SECONDS="60" TARGET="all":
    HIGHWATER_FUZZ_SECONDS={{SECONDS}} HIGHWATER_FUZZ_TARGET={{TARGET}} cargo test -p highwater-protocol --release --features zstd --test fuzz -- --nocapture

# Ceilings of this machine beside Highwater's own figures.
bench *ARGS:
    cargo run --release -p highwater-benches --bin ceiling -- {{ARGS}}

# A local cluster to play with, until Ctrl-C.
cluster *ARGS:
    cargo run --release -- quickstart {{ARGS}}

# Takes each rule out, one at a time, and expects its named test to fail.
mutate *ARGS:
    tests/mutate/run.sh {{ARGS}}
