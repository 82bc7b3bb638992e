//! Partitions: one owner task each, reached through handles.

mod append;
mod cleaning;
mod following;
pub(crate) mod handle;
mod leading;
pub(crate) mod mailbox;
pub(crate) mod manager;
mod opener;
pub(crate) mod reads;
mod repair;
mod scrub;
pub(crate) mod services;
pub(crate) mod sessions;
pub(crate) mod status;
mod suspect;
pub(crate) mod ticket;
mod waiters;
pub(crate) mod worker;
