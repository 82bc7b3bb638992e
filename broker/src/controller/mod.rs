//! The control plane of a broker: the replicated cluster image, who the controller is, and this broker's registration.
//!
//! The only module that names the consensus engine. Everything in it runs on one thread with a runtime of its own;
//! [`service::ControllerHandle`] is how the rest of the broker reaches it.

mod bootstrap;
mod catch_up;
mod consensus;
mod core;
mod engine;
mod import;
mod judge;
mod leader;
mod links;
mod membership;
mod network;
pub(crate) mod producer_ids;
mod proposals;
mod registration;
pub(crate) mod service;
mod store;

pub(crate) use self::core::{BootReport, Setup};
pub(crate) use store::ListedVoter;
pub use store::offline_image;

/// The target of log lines of the consensus engine.
pub(crate) const CONSENSUS_LOGS: &str = "openraft";
