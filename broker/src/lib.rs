//! The shells around the broker's pure core.

pub mod storage;
