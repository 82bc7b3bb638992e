//! Tests of store and log on the real file system. Power cuts are the business of the simulated one.

mod append_and_read;
mod cleaning;
mod damage;
mod faults;
mod life;
mod support;
