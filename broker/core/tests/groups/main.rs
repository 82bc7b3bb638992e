//! The coordinator of consumer groups: scenarios, bounds, and generated histories.
#![cfg(test)]

mod bench;
mod scenarios;
