//! Consumer groups on real brokers: coordinators killed, very many members, and a long history read again. One cluster at a
//! time: each test waits until the brokers of the one before are gone.
//!
//! The recipes of the justfile run the parts longer and harder.
#![cfg(test)]

mod coordinator_kills;
mod coordinator_pauses;
mod joining;
mod many_members;
mod replay;
