#!/usr/bin/env bash
# Shows that the tests see what they are for: takes one rule out of the product at a time (`--cfg hw_mutate="RULE"`) and
# expects the test that guards the rule to pass with it and to fail without it.
#
#   tests/mutate/run.sh              all rules
#   tests/mutate/run.sh RULE…        some of them
#   tests/mutate/run.sh --list       their names
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# rule | test file | test
rules() {
    cat <<'RULES'
h9_keep_clean_marker   | holes            | h9_
h10_cut_at_first_bad   | holes            | h10_
h11_reuse_offset       | holes            | h11_
h18_retry_fsync        | holes            | h18_
h19_no_directory_sync  | holes            | h19_
h22_no_physical_cut    | holes            | h22_
h26_ack_without_gate   | holes            | h26_
ack_before_flush       | broker_histories | acknowledged_records_survive
h4_no_eligible_set     | core             | tests::sets::h4_
h4_unclean_keeps_place | core             | tests::sets::h4_
h5_any_registration    | core             | tests::sets::h5_
h5_any_directory       | core             | tests::sets::h5_
h24_no_feature_level   | core             | tests::cluster::h24_
in_sync_of_any_leader  | core             | a_proposal_counts_only_as_it_was_made
in_sync_of_any_version | core             | a_proposal_counts_only_as_it_was_made
leader_keeps_epoch     | core             | a_fenced_leader_is_replaced
ends_of_the_first      | core             | with_both_sets_empty
move_drops_early       | core             | a_move_waits_for_its_new_replicas
h13_zombie_producer    | producer_holes   | h13_
unknown_producer_accepted | producer_holes | h13_
h14_state_goes_with_segments | producer_holes | h14_what_is_known
producers_not_cut      | producer_holes   | h14_a_follower
duplicate_answered_early | producer_holes | a_duplicate_waits
RULES
}

field() { cut -d'|' -f"$2" <<<"$1" | tr -d ' '; }

if [[ "${1:-}" == --list ]]; then
    while read -r line; do field "$line" 1; done < <(rules)
    exit 0
fi

target=target/mutate
mkdir -p "$target/wrappers" "$target/logs"

# Cargo calls the wrapper for the crates of this workspace only, and rebuilds them when its path is another one.
wrapper() {
    local rule=$1 path="$PWD/$target/wrappers/$1"
    local text='#!/bin/sh
compiler=$1
shift
exec "$compiler" "$@"'
    [[ "$rule" == none ]] || text+=" --cfg 'hw_mutate=\"$rule\"'"
    [[ -f "$path" && "$(cat "$path")" == "$text" ]] || printf '%s\n' "$text" >"$path"
    chmod +x "$path"
    printf '%s' "$path"
}

# Prints passed, failed, unbuilt or none (no such test), and keeps the output.
try() {
    local rule=$1 file=$2 test=$3
    local log="$target/logs/$rule-$file-$test.log"
    local where=(-p highwater-tests --test "$file")
    # The rules of the pure core are guarded by tests beside them.
    [[ "$file" == core ]] && where=(-p highwater-broker-core --lib)
    local cargo=(env "RUSTC_WORKSPACE_WRAPPER=$(wrapper "$rule")" CARGO_INCREMENTAL=0 cargo test --quiet
        --target-dir "$target" "${where[@]}")
    if ! "${cargo[@]}" --no-run >"$log" 2>&1; then
        echo unbuilt
    elif timeout 900 "${cargo[@]}" -- "$test" --test-threads 2 >>"$log" 2>&1; then
        # A filter that no test matches must not look like a test that passes.
        grep -Eq 'test result: ok\. [1-9]' "$log" && echo passed || echo none
    else
        grep -Eq 'test result: FAILED' "$log" && echo failed || echo crashed
    fi
}

wanted=("$@")
bad=0
printf '%-24s %-18s %-32s %-10s %-10s\n' RULE FILE TEST 'RULE IN' 'RULE OUT'
while read -r line; do
    rule=$(field "$line" 1) file=$(field "$line" 2) test=$(field "$line" 3)
    if ((${#wanted[@]})) && [[ " ${wanted[*]} " != *" $rule "* ]]; then
        continue
    fi
    in=$(try none "$file" "$test")
    out=$(try "$rule" "$file" "$test")
    verdict=
    if [[ "$in" != passed || "$out" != failed ]]; then
        bad=$((bad + 1))
        verdict="<- expected passed, failed; see $target/logs/"
    fi
    printf '%-24s %-18s %-32s %-10s %-10s %s\n' "$rule" "$file" "$test" "$in" "$out" "$verdict"
done < <(rules)
if ((bad)); then
    echo "$bad of the rules are not guarded by their test" >&2
    exit 1
fi
echo "every rule is guarded by its test"
