//! Three and more real brokers as one cluster, and everything that can happen to them. One cluster at a time: each test
//! waits until the brokers of the one before are gone.
//!
//! The recipes of the justfile run the parts longer and harder.
#![cfg(test)]

mod all_killed;
mod around;
mod exactly_once;
mod failover;
mod new_topics;
mod partitions;
mod rebalance;
mod replica_corruption;
mod rolling_restart;
mod wrong_starts;
