//! How people and programs see what a broker does: logs, metrics, health. Nothing here is global but the subscriber of
//! the logs, so two brokers can live in one process.

pub mod health;
pub mod http;
pub mod metrics;
pub(crate) mod topics;
pub mod tracing;
