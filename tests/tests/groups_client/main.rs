//! Members of consumer groups that share topics of real brokers: `highwater consume --group` as processes of its own that are
//! stopped, killed and paused, and consumers in this process whose records are timed. One cluster at a time.
//!
//! The recipes of the justfile run the parts longer and harder.
#![cfg(test)]

mod churn;
mod gaps;
mod reader;
mod shared_file;
mod zombie;
