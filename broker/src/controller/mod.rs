//! The control plane of a broker. The only module that will name a consensus engine.

pub(crate) mod service;
