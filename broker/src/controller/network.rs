//! Messages of consensus between brokers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use highwater_protocol::messages::{RaftReply, RaftRequest};
use openraft::AnyError;
use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::consensus::{Member, Raft, Types};
use super::links::Links;
use crate::api::ApiError;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::NodeId;

/// Between two attempts to reach a member that is not there.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

const APPEND_ENTRIES: u32 = 1;
const VOTE: u32 = 2;
const INSTALL_SNAPSHOT: u32 = 3;

/// Where members are: addresses change, and the membership has the one that was known when it was decided.
pub(crate) trait AddressBook: fmt::Debug + Send + Sync {
    /// Where to try next.
    fn address_of(&self, node: NodeId, member: &Member) -> String;
    /// It was not there.
    fn not_there(&self, node: NodeId);
}

/// Makes the senders of messages.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub(crate) links: Links,
    pub(crate) addresses: Arc<dyn AddressBook>,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Sender;

    async fn new_client(&mut self, target: u64, node: &Member) -> Sender {
        Sender { network: self.clone(), target, member: node.clone() }
    }
}

/// Sends messages to one member.
#[derive(Debug)]
pub(crate) struct Sender {
    network: Network,
    target: u64,
    member: Member,
}

type Failed<E> = RPCError<u64, Member, RaftError<u64, E>>;

impl Sender {
    async fn send<M: Serialize, R: DeserializeOwned, E: std::error::Error + DeserializeOwned>(
        &self,
        kind: u32,
        message: &M,
        time: Duration,
    ) -> Result<R, Failed<E>> {
        let node = NodeId(u32::try_from(self.target).unwrap_or_default());
        let address = self.network.addresses.address_of(node, &self.member);
        let payload = rmp_serde::to_vec_named(message).map_err(|error| unreachable(&error))?;
        let request = RaftRequest {
            kind,
            payload: Bytes::from(payload),
            to_directory: Some(self.member.directory_id.into()),
        };
        let reply = self.network.links.request(&address, &request, Instant::now() + time).await;
        let reply: RaftReply = reply.map_err(|error| {
            tracing::debug!(%node, address, %error, "a member of consensus was not reached");
            self.network.addresses.not_there(node);
            RPCError::Unreachable(Unreachable::new(&error))
        })?;
        let answer: Result<R, RaftError<u64, E>> = rmp_serde::from_slice(&reply.payload)
            .map_err(|error| RPCError::Network(NetworkError::new(&AnyError::new(&error))))?;
        answer.map_err(|error| RPCError::RemoteError(RemoteError::new(self.target, error)))
    }
}

fn unreachable<E: std::error::Error>(error: &rmp_serde::encode::Error) -> Failed<E> {
    RPCError::Unreachable(Unreachable::new(&AnyError::new(error)))
}

impl RaftNetwork<Types> for Sender {
    async fn append_entries(
        &mut self,
        message: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RPCError<u64, Member, RaftError<u64>>> {
        self.send(APPEND_ENTRIES, &message, option.hard_ttl()).await
    }

    async fn install_snapshot(
        &mut self,
        message: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, RPCError<u64, Member, RaftError<u64, InstallSnapshotError>>>
    {
        self.send(INSTALL_SNAPSHOT, &message, option.hard_ttl()).await
    }

    async fn vote(
        &mut self,
        message: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, Member, RaftError<u64>>> {
        self.send(VOTE, &message, option.hard_ttl()).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY_PAUSE))
    }
}

/// Hands a message of another member to the engine.
pub(crate) async fn receive(raft: &Raft, request: &RaftRequest) -> Result<RaftReply, ApiError> {
    let payload = match request.kind {
        APPEND_ENTRIES => encode(&raft.append_entries(decode(&request.payload)?).await),
        VOTE => encode(&raft.vote(decode(&request.payload)?).await),
        INSTALL_SNAPSHOT => encode(&raft.install_snapshot(decode(&request.payload)?).await),
        other => {
            return Err(ApiError::invalid(format!(
                "message {other} of consensus is not known to this version"
            )));
        }
    };
    Ok(RaftReply { payload: payload? })
}

fn decode<M: DeserializeOwned>(payload: &[u8]) -> Result<M, ApiError> {
    rmp_serde::from_slice(payload)
        .map_err(|error| ApiError::invalid(format!("a message of consensus does not decode: {error}")))
}

fn encode<M: Serialize>(answer: &M) -> Result<Bytes, ApiError> {
    rmp_serde::to_vec_named(answer)
        .map(Bytes::from)
        .map_err(|error| ApiError::new(ErrorCode::Internal, format!("an answer does not encode: {error}")))
}
