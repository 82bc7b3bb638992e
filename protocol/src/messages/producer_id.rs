//! Identities of idempotent producers.

/// Asks for an identity, or for the next epoch of one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct InitProducerRequest {
    /// The identity so far; absent: a new one.
    #[prost(uint64, optional, tag = "1")]
    pub producer_id: Option<u64>,
    /// Its epoch so far.
    #[prost(uint32, tag = "2")]
    pub producer_epoch: u32,
}

/// The identity to use from here on, with sequences from 0 in every partition.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct InitProducerReply {
    /// The identity. A new one when the epochs of the old one are used up.
    #[prost(uint64, tag = "1")]
    pub producer_id: u64,
    /// Its epoch.
    #[prost(uint32, tag = "2")]
    pub producer_epoch: u32,
}
