//! Links, frames and connections: the only part of the client that does input and output.
//!
//! Brokers use it too, for their links to each other.

mod connection;
mod handshake;
mod link;
mod pool;
mod reader;
mod spare;
mod writer;

pub use crate::error::Error;
pub use connection::{Attachment, Connection, Events, Lost, NoEvents, ReplySink, Sent, Settings};
pub use link::{Connecting, Connector, Link, TcpConnector};
pub use pool::{BrokerBreaker, Pool};
