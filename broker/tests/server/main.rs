//! The server over in-memory links, frame by frame: what a peer sees, whatever it does.
#![cfg(test)]

mod cluster;
mod connection;
mod flow;
mod groups;
mod produce;
mod subscribe;
mod support;
mod together;
