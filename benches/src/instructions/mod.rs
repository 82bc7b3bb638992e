//! Counting the instructions of a path, and holding the counts against recorded ones.
//!
//! A count says what a clock on a busy machine cannot: whether the same work takes more than before. It depends on the
//! compiler, on the C library (copying and comparing bytes) and on the processor that valgrind offers, so it is compared
//! only with counts that were made with the same ones.

pub mod baseline;
pub mod callgrind;
