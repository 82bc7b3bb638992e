//! Every decision of a broker as a state machine: no `async`, no clock, no randomness, no file, no socket.

pub mod controller;
pub mod durability;
pub mod nearest;
pub mod replica;
pub mod time;
