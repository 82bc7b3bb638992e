//! Followers: links to the brokers that lead, subscriptions on them, and how fast they may fetch.

pub(crate) mod fetch;
pub(crate) mod fetched;
mod link;
pub(crate) mod links;
pub(crate) mod throttle;
