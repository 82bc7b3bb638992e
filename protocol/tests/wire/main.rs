//! The bytes on the wire: golden files, round trips, the `.proto` file, and inputs that no honest peer sends.
#![cfg(test)]

mod batches;
mod documents;
mod expect;
mod golden;
mod proto_agrees;
mod proto_file;
mod roundtrip;
mod samples;
mod splitter;
