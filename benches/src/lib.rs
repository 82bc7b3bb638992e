//! Raw ceilings of the machine, and Highwater measured beside them.
//!
//! A figure of a broker says little without what the machine could have done at best in the same minutes. The ceilings
//! here are the shortest programs that move the same bytes: blocking threads, no protocol, no log. `src/bin` has the
//! programs that run them, alone (`ceiling`) and alternately with the real broker (`compare`).

pub mod ceiling;
pub mod highwater;
pub mod instructions;
pub mod memory;
pub mod path;
pub mod payload;
pub mod peer;
pub mod sample;
