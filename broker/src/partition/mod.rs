//! Partitions: one owner task each, reached through handles.

mod append;
pub(crate) mod handle;
pub(crate) mod manager;
mod opener;
pub(crate) mod reads;
pub(crate) mod services;
pub(crate) mod ticket;
mod waiters;
pub(crate) mod worker;
