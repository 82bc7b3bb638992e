//! The shells around the broker's pure core.

mod api;
mod broker;
pub mod config;
mod controller;
pub mod env;
mod group;
mod io_thread;
pub mod observe;
mod partition;
mod port_file;
mod replication;
mod run;
mod server;
mod startup;
pub mod storage;
mod upkeep;

pub use broker::{Broker, ShutdownError, StartError};
pub use controller::offline_image;
pub use run::{RunError, run};
