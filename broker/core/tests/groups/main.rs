//! The coordinator of consumer groups: scenarios, bounds, and generated histories.
#![cfg(test)]

mod bench;
mod dice;
mod histories;
mod oracle;
mod scenarios;
mod world;
