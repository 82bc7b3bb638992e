//! The shells around the broker's pure core.

pub mod config;
pub mod env;
pub mod observe;
pub mod storage;
