#!/usr/bin/env bash
# What idempotent producers cost the broker in instructions, over the whole way of a batch: connection, checks, verdict,
# append, answer. The broker and its client take turns on one thread, so that equal runs count nearly the same. Needs valgrind.
#
#   benches/idempotence-cost.sh [RUNS]
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/instructions.sh" identity --runs "${1:-3}"
