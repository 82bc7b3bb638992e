//! The coordinator of consumer groups: scenarios, bounds, and generated histories.
#![cfg(test)]

mod bench;
mod bounds;
mod dice;
mod histories;
mod interleavings;
mod oracle;
mod positions;
mod records;
mod scenarios;
mod statics;
mod world;
