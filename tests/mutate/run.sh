#!/usr/bin/env bash
# Shows that the tests see what they are for: takes one rule out of the product at a time and expects the test that guards
# the rule to pass with it and to fail without it.
#
# A rule is named where it can be left out: `cfg!(hw_mutate = "RULE")`, never true in a build that ships. Here a copy of the
# tree is built, once for each file of tests, in which that is asked at run time.
#
#   tests/mutate/run.sh              all rules
#   tests/mutate/run.sh RULE…        some of them
#   tests/mutate/run.sh --list       their names
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# rule | package | test file | test
rules() {
    cat <<'RULES'
h9_keep_clean_marker                 | tests       | holes            | h9_
h10_cut_at_first_bad                 | tests       | holes            | h10_
h11_reuse_offset                     | tests       | holes            | h11_
h18_retry_fsync                      | tests       | holes            | h18_
h19_no_directory_sync                | tests       | holes            | h19_
h22_no_physical_cut                  | tests       | holes            | h22_
h26_ack_without_gate                 | tests       | holes            | h26_
ack_before_flush                     | tests       | broker_histories | acknowledged_records_survive
h1_cut_to_watermark                  | broker-core | replica_holes    | h1_
h2_unknown_epoch_agrees              | broker-core | replica_holes    | h2_
h3_subscribe_in_another_epoch        | broker-core | replica_holes    | h3_both
h3_push_of_another_epoch             | broker-core | replica_holes    | h3_both
h4_commit_below_min_in_sync          | broker-core | replica_holes    | h4_
h5_session_of_an_old_registration    | broker-core | replica_holes    | h5_
ack_of_another_registration          | broker-core | replica_holes    | h5_
ack_before_flush                     | broker-core | replica_holes    | h6_
h7_ack_of_another_epoch              | broker-core | replica_holes    | h7_an_acknowledgement
h7_ack_of_a_dead_session             | broker-core | replica_holes    | h7_an_acknowledgement
h8_ready_at_once                     | broker-core | replica_holes    | h8_
h15_reset_of_a_member                | broker-core | replica_holes    | h15_
stale_flush_counts                   | broker-core | replica_holes    | h26_
growth_not_waited_for                | broker-core | replica_holes    | a_growth_is_waited_for
shrink_counts_at_once                | broker-core | replica_holes    | a_growth_is_waited_for
join_below_watermark                 | broker-core | replica_holes    | who_joins
join_below_epoch_start               | broker-core | replica_holes    | who_joins
cut_below_committed                  | broker-core | replica_holes    | nothing_committed_is_cut
lead_twice_in_an_epoch               | broker-core | replica_holes    | a_replica_never_leads_twice
recovered_while_short                | broker-core | replica_holes    | whoever_lost_something
lead_by_an_old_registration          | broker-core | replica_holes    | interleaving_a_leader_back
durability_recorded_before_flush     | broker-core | replica_holes    | interleaving_a_stricter
durability_recorded_despite_eligible | broker-core | replica_holes    | interleaving_a_stricter
durability_recorded_before_ready     | broker-core | replica_holes    | interleaving_a_stricter
durability_relaxed_before_record     | broker-core | replica_holes    | interleaving_a_laxer
h7_ack_of_another_epoch              | broker-core | replica_holes    | interleaving_a_stale
answered_before_commit               | broker-core | replica_holes    | interleaving_a_duplicate
h4_no_eligible_set                   | broker-core | lib              | tests::sets::h4_
h4_unclean_keeps_place               | broker-core | lib              | tests::sets::h4_
h5_any_registration                  | broker-core | lib              | tests::sets::h5_
h5_any_directory                     | broker-core | lib              | tests::sets::h5_
h24_no_feature_level                 | broker-core | lib              | tests::cluster::h24_
in_sync_of_any_leader                | broker-core | lib              | a_proposal_counts_only_as_it_was_made
in_sync_of_any_version               | broker-core | lib              | a_proposal_counts_only_as_it_was_made
leader_keeps_epoch                   | broker-core | lib              | a_fenced_leader_is_replaced
ends_of_the_first                    | broker-core | lib              | with_both_sets_empty
move_drops_early                     | broker-core | lib              | a_move_waits_for_its_new_replicas
h13_zombie_producer                  | tests       | producer_holes   | h13_
unknown_producer_accepted            | tests       | producer_holes   | h13_
h14_state_goes_with_segments         | tests       | producer_holes   | h14_what_is_known
producers_not_cut                    | tests       | producer_holes   | h14_a_follower
duplicate_answered_early             | tests       | producer_holes   | a_duplicate_waits
h13_gap_is_passed_over               | client      | lib              | sequenced::tests::behind_a_batch_that_was
h13_ambiguous_batch_under_new_epoch  | client      | lib              | sequenced::tests::what_may_still_arrive
raft_to_any_directory                | broker      | cluster          | messages_of_consensus
group_release_by_an_old_heartbeat    | broker-core | groups           | a_late_heartbeat
group_commit_of_any_generation       | broker-core | groups           | a_late_commit
group_join_starts_over               | broker-core | groups           | a_repeated_join
group_subscription_of_an_old_heartbeat | broker-core | groups         | a_late_subscription
group_half_an_assignment             | broker-core | groups           | half_an_assignment
group_gives_what_others_own          | broker-core | groups           | a_partition_that_does_not_move
RULES
}

field() { cut -d'|' -f"$2" <<<"$1" | tr -d ' '; }

if [[ "${1:-}" == --list ]]; then
    rules | cut -d'|' -f1 | tr -d ' ' | sort -u
    exit 0
fi

target=$PWD/target/mutate
tree=$target/tree
mkdir -p "$target/logs" "$tree"

# A rule that is spelled differently here and in the product would not be left out, and its test not fail: said at once.
known=$(git grep -hoE 'hw_mutate = "[a-z0-9_]+"' -- '*.rs' | cut -d'"' -f2 | sort -u)
if ! diff <(rules | cut -d'|' -f1 | tr -d ' ' | sort -u) <(printf '%s\n' "$known"); then
    echo "the rules listed here (<) are not those of the product (>)" >&2
    exit 2
fi

# The copy, with the question asked once for each place. Files that have not changed keep their times, and their builds.
while IFS= read -r -d '' file; do
    mkdir -p "$tree/$(dirname "$file")"
    if [[ "$file" == *.rs ]] && grep -q 'hw_mutate' "$file"; then
        perl -0pe 's/cfg!\(hw_mutate = "(\w+)"\)/{ static OUT: std::sync::OnceLock<bool> = std::sync::OnceLock::new(); *OUT.get_or_init(|| std::env::var_os("HW_RULE_OUT").is_some_and(|rule| rule == "$1")) }/g' \
            "$file" >"$target/mutated.rs"
    else
        cp "$file" "$target/mutated.rs"
    fi
    cmp -s "$target/mutated.rs" "$tree/$file" || cp "$target/mutated.rs" "$tree/$file"
    [[ -x "$file" ]] && chmod +x "$tree/$file"
done < <(git ls-files -z --cached --others --exclude-standard)

# Prints passed, failed, unbuilt, crashed or none (no such test), and keeps the output.
try() {
    local rule=$1 package=$2 file=$3 test=$4
    local log="$target/logs/$rule-$file-${test//:/_}.log"
    local where=(-p "highwater-$package" --test "$file")
    # Tests beside the rules that they guard.
    [[ "$file" == lib ]] && where=(-p "highwater-$package" --lib)
    local cargo=(env -C "$tree" "HW_RULE_OUT=$rule" CARGO_INCREMENTAL=0 "RUSTFLAGS=--cap-lints allow" cargo test --quiet
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

declare -A passes
wanted=("$@")
bad=0
printf '%-37s %-18s %-32s %-10s %-10s\n' RULE FILE TEST 'RULE IN' 'RULE OUT'
while read -r line; do
    rule=$(field "$line" 1) package=$(field "$line" 2) file=$(field "$line" 3) test=$(field "$line" 4)
    if ((${#wanted[@]})) && [[ " ${wanted[*]} " != *" $rule "* ]]; then
        continue
    fi
    # With every rule in, a test has to pass only once, however many rules it guards.
    [[ -v "passes[$package/$file/$test]" ]] || passes["$package/$file/$test"]=$(try none "$package" "$file" "$test")
    in=${passes["$package/$file/$test"]}
    out=$(try "$rule" "$package" "$file" "$test")
    verdict=
    if [[ "$in" != passed || "$out" != failed ]]; then
        bad=$((bad + 1))
        verdict="<- expected passed, failed; see $target/logs/"
    fi
    printf '%-37s %-18s %-32s %-10s %-10s %s\n' "$rule" "$file" "$test" "$in" "$out" "$verdict"
done < <(rules)
if ((bad)); then
    echo "$bad of the rules are not guarded by their test" >&2
    exit 1
fi
echo "every rule is guarded by its test"
