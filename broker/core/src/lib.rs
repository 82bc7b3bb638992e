//! Every decision of a broker as a state machine: no `async`, no clock, no randomness, no file, no socket.

pub mod controller;
pub mod durability;
pub mod group;
pub mod log;
pub mod nearest;
pub mod producer;
pub mod quota;
pub mod replica;
pub mod round_robin;
pub mod subscription;
pub mod time;
