//! From a frame to its handler. Nothing in here waits: what takes time is left with a task that replies later.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use highwater_broker_core::quota::Window;
use highwater_protocol::api::{ApiKey, PROTOCOL_VERSION, Request};
use highwater_protocol::body::Body;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::frame::{FLAG_ONE_WAY, FLAG_REPLY, Frame};
use highwater_protocol::ids::{BrokerEpoch, ClusterId, CorrelationId, SubscriptionId};
use highwater_protocol::limits::{AUTHENTICATION_ROUNDS_MAX, FRAME_BYTES_MAX, NAME_BYTES_MAX};
use highwater_protocol::messages::{
    AlterClusterRequest, AlterGroupOffsetsRequest, AlterTopicRequest, AuthenticateRequest, BootstrapRequest,
    CreateTopicRequest, Credit, DeleteGroupsRequest, DeleteTopicRequest, DescribeClusterRequest,
    DescribeGroupsRequest, DescribeTopicsRequest, FindCoordinatorRequest, HandshakeReply, HandshakeRequest,
    HeartbeatRequest, InitProducerRequest, ListGroupsRequest, ListOffsetsRequest, MetadataRequest, PingReply,
    PingRequest, ProduceRequest, ProposeRequest, RaftRequest, ReadRequest, RegisterBrokerRequest, ReplicaAck,
    ReplicaChecksumRequest, ReplicaReadRequest, ReplicaResetRequest, SubscribeRequest, UnsubscribeReply,
    UnsubscribeRequest,
};
use tracing::debug;

use super::Node;
use super::lanes::Lanes;
use super::metadata_watch::MetadataWatch;
use super::outbox::Outbox;
use super::principal::Principal;
use super::subscriptions::Feeds;
use crate::api::{self, ApiError};

/// Why a connection is closed by the broker, and what the peer is told.
pub(crate) type Fault = ApiError;

/// What is about consumer groups.
const GROUP_APIS: [ApiKey; 8] = [
    ApiKey::FIND_COORDINATOR,
    ApiKey::GROUP_HEARTBEAT,
    ApiKey::COMMIT_OFFSETS,
    ApiKey::FETCH_OFFSETS,
    ApiKey::LIST_GROUPS,
    ApiKey::DESCRIBE_GROUPS,
    ApiKey::ALTER_GROUP_OFFSETS,
    ApiKey::DELETE_GROUPS,
];

/// The state of one connection, apart from its bytes.
#[derive(Debug)]
pub(crate) struct Session {
    node: Arc<Node>,
    outbox: Arc<Outbox>,
    /// Where the peer is, for people.
    peer: Arc<str>,
    stage: Stage,
    lanes: Lanes,
    pub(crate) feeds: Feeds,
    pub(crate) watch: MetadataWatch,
    pub(crate) window: Window,
    /// Requests that are not answered, or whose answers are not written yet.
    pub(crate) in_flight: u32,
    authentication_rounds: usize,
}

#[derive(Debug)]
enum Stage {
    /// The handshake has to come first.
    Handshake,
    /// Requests are served for this principal.
    Ready(Arc<Principal>),
}

impl Session {
    pub(crate) fn new(node: Arc<Node>, outbox: Arc<Outbox>, peer: &str) -> Self {
        let window = node.budget.lock().open();
        Self {
            feeds: Feeds::new(Arc::clone(&node), Arc::clone(&outbox)),
            node,
            outbox,
            peer: Arc::from(peer),
            stage: Stage::Handshake,
            lanes: Lanes::default(),
            watch: MetadataWatch::default(),
            window,
            in_flight: 0,
            authentication_rounds: 0,
        }
    }

    /// Whether the handshake is done.
    pub(crate) const fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready(_))
    }

    /// Takes a frame. An error closes the connection.
    pub(crate) fn take(&mut self, frame: Frame) -> Result<(), Fault> {
        let (api, flags) = (frame.header.api, frame.header.flags);
        self.node.requests.count(api);
        if flags & FLAG_REPLY != 0 {
            return Err(malformed("a reply came where requests are expected"));
        }
        if flags & FLAG_ONE_WAY != 0 {
            return self.take_one_way(&frame);
        }
        self.in_flight += 1;
        if self.in_flight > self.node.limits.in_flight_max {
            return Err(Fault::new(
                ErrorCode::TooManyInFlight,
                format!("more than {} requests are unanswered", self.node.limits.in_flight_max),
            ));
        }
        let correlation_id = frame.header.correlation_id;
        let attachment = frame.attachment.len() as u64;
        if attachment > 0 && api != ApiKey::PRODUCE {
            return Err(malformed("only produce requests have attachments"));
        }
        if attachment > 0 {
            self.window.receive(attachment).map_err(|error| {
                Fault::new(ErrorCode::WindowExceeded, format!("produce window exceeded: {error}"))
            })?;
        }
        let principal = match &self.stage {
            Stage::Ready(principal) => Arc::clone(principal),
            Stage::Handshake if api == ApiKey::HANDSHAKE => return self.handshake(&frame),
            Stage::Handshake => {
                return Err(Fault::new(ErrorCode::NotAuthenticated, "the handshake has to come first"));
            }
        };
        let outcome = if self.node.draining.is_cancelled() && api != ApiKey::PING {
            Err(ApiError::new(ErrorCode::ShuttingDown, "the broker is shutting down"))
        } else {
            self.serve(principal, &frame)?
        };
        if let Err(error) = outcome {
            debug!(api = api.name(), %error, "request refused");
            self.node.metrics.count_error(api, error.code);
            self.outbox.reply_error(api, correlation_id, &error);
            // A refused produce request holds nothing.
            self.window.release(attachment);
        }
        Ok(())
    }

    /// Serves a request. The outer error closes the connection, the inner one refuses the request.
    fn serve(&mut self, principal: Arc<Principal>, frame: &Frame) -> Result<Result<(), ApiError>, Fault> {
        let correlation_id = frame.header.correlation_id;
        let outcome = match frame.header.api {
            ApiKey::PRODUCE => {
                let request: ProduceRequest = decode(frame)?;
                api::produce::handle(
                    &self.node,
                    &principal,
                    &self.outbox,
                    &mut self.lanes,
                    correlation_id,
                    &request,
                    frame.attachment.clone(),
                )
            }
            ApiKey::SUBSCRIBE => self.subscribe(&principal, correlation_id, &decode(frame)?),
            ApiKey::UNSUBSCRIBE => {
                let request: UnsubscribeRequest = decode(frame)?;
                self.feeds.unsubscribe(SubscriptionId(request.id)).map(|()| {
                    self.outbox.reply::<UnsubscribeRequest>(correlation_id, &UnsubscribeReply {});
                })
            }
            ApiKey::METADATA => self.metadata(principal, frame)?,
            ApiKey::DESCRIBE_CLUSTER => {
                let _all: DescribeClusterRequest = decode(frame)?;
                api::cluster::describe(&self.node, &principal)
                    .map(|reply| self.outbox.reply::<DescribeClusterRequest>(correlation_id, &reply))
            }
            ApiKey::CREATE_TOPIC
            | ApiKey::DESCRIBE_TOPICS
            | ApiKey::ALTER_TOPIC
            | ApiKey::DELETE_TOPIC
            | ApiKey::ALTER_CLUSTER
            | ApiKey::LIST_OFFSETS
            | ApiKey::REPLICA_CHECKSUM
            | ApiKey::INIT_PRODUCER => self.serve_later(principal, frame)?,
            ApiKey::READ | ApiKey::REPLICA_READ | ApiKey::REPLICA_RESET => {
                self.serve_bytes(principal, frame)?
            }
            ApiKey::BOOTSTRAP => {
                let _who: BootstrapRequest = decode(frame)?;
                api::registration::bootstrap(&self.node, &principal)
                    .map(|reply| self.outbox.reply::<BootstrapRequest>(correlation_id, &reply))
            }
            ApiKey::RAFT | ApiKey::REGISTER_BROKER | ApiKey::HEARTBEAT | ApiKey::PROPOSE => {
                self.serve_broker(principal, frame)?
            }
            ApiKey::PING => {
                let _nothing: PingRequest = decode(frame)?;
                self.outbox.reply::<PingRequest>(correlation_id, &PingReply {});
                Ok(())
            }
            ApiKey::HANDSHAKE => Err(ApiError::invalid("the handshake is done already")),
            ApiKey::AUTHENTICATE => return self.authenticate(frame),
            api if GROUP_APIS.contains(&api) => self.serve_groups(principal, frame)?,
            other => Err(ApiError::new(
                ErrorCode::UnknownApi,
                format!("this broker does not know API {} ({})", other.0, other.name()),
            )),
        };
        Ok(outcome)
    }

    /// Serves a request that takes time.
    fn serve_later(&self, principal: Arc<Principal>, frame: &Frame) -> Result<Result<(), ApiError>, Fault> {
        match frame.header.api {
            ApiKey::CREATE_TOPIC => self.later::<CreateTopicRequest, _>(frame, |node, request| async move {
                api::topics::create(&node, &principal, request).await
            }),
            ApiKey::ALTER_TOPIC => self.later::<AlterTopicRequest, _>(frame, |node, request| async move {
                api::topics::alter(&node, &principal, request).await
            }),
            ApiKey::DELETE_TOPIC => self.later::<DeleteTopicRequest, _>(frame, |node, request| async move {
                api::topics::delete(&node, &principal, request).await
            }),
            ApiKey::DESCRIBE_TOPICS => self
                .later::<DescribeTopicsRequest, _>(frame, |node, request| async move {
                    api::topics::describe(&node, &principal, &request).await
                }),
            ApiKey::INIT_PRODUCER => self
                .later::<InitProducerRequest, _>(frame, |node, request| async move {
                    api::init_producer::handle(&node, &principal, request).await
                }),
            ApiKey::ALTER_CLUSTER => self
                .later::<AlterClusterRequest, _>(frame, |node, request| async move {
                    api::cluster::alter(&node, &principal, request).await
                }),
            ApiKey::REPLICA_CHECKSUM => self
                .later::<ReplicaChecksumRequest, _>(frame, |node, request| async move {
                    api::replica::checksum(&node, &principal, request).await
                }),
            _ => self.later::<ListOffsetsRequest, _>(frame, |node, request| async move {
                api::list_offsets::handle(&node, &principal, request).await
            }),
        }
    }

    /// Serves a request of another broker to the control plane.
    fn serve_broker(&self, principal: Arc<Principal>, frame: &Frame) -> Result<Result<(), ApiError>, Fault> {
        match frame.header.api {
            ApiKey::RAFT => self.later::<RaftRequest, _>(frame, |node, request| async move {
                api::raft::handle(&node, &principal, request).await
            }),
            ApiKey::REGISTER_BROKER => self
                .later::<RegisterBrokerRequest, _>(frame, |node, request| async move {
                    api::registration::register(&node, &principal, request).await
                }),
            ApiKey::HEARTBEAT => self.later::<HeartbeatRequest, _>(frame, |node, request| async move {
                api::registration::heartbeat(&node, &principal, request).await
            }),
            _ => self.later::<ProposeRequest, _>(frame, |node, request| async move {
                api::registration::propose(&node, &principal, request).await
            }),
        }
    }

    /// Leaves a request of a consumer with the coordinator of its group, which answers.
    fn leave_with_coordinator(
        &self,
        principal: &Principal,
        frame: &Frame,
    ) -> Result<Result<(), ApiError>, Fault> {
        let (node, outbox, id) = (&self.node, &self.outbox, frame.header.correlation_id);
        let bytes = frame.body.len();
        Ok(match frame.header.api {
            ApiKey::GROUP_HEARTBEAT => {
                let from = (&self.peer, bytes);
                api::groups::heartbeat(node, principal, outbox, id, decode(frame)?, from)
            }
            ApiKey::COMMIT_OFFSETS => {
                api::offsets::commit(node, principal, outbox, id, decode(frame)?, bytes)
            }
            _ => api::offsets::fetch(node, principal, outbox, id, decode(frame)?, bytes),
        })
    }

    /// Serves a request about groups.
    fn serve_groups(&self, principal: Arc<Principal>, frame: &Frame) -> Result<Result<(), ApiError>, Fault> {
        match frame.header.api {
            ApiKey::GROUP_HEARTBEAT | ApiKey::COMMIT_OFFSETS | ApiKey::FETCH_OFFSETS => {
                self.leave_with_coordinator(&principal, frame)
            }
            ApiKey::FIND_COORDINATOR => self
                .later::<FindCoordinatorRequest, _>(frame, |node, request| async move {
                    api::groups::find_coordinator(&node, &principal, request).await
                }),
            ApiKey::LIST_GROUPS => self.later::<ListGroupsRequest, _>(frame, |node, request| async move {
                api::groups::list(&node, &principal, request).await
            }),
            ApiKey::DESCRIBE_GROUPS => self
                .later::<DescribeGroupsRequest, _>(frame, |node, request| async move {
                    api::groups::describe(&node, &principal, request).await
                }),
            ApiKey::ALTER_GROUP_OFFSETS => self
                .later::<AlterGroupOffsetsRequest, _>(frame, |node, request| async move {
                    api::offsets::alter(&node, &principal, request).await
                }),
            _ => self.later::<DeleteGroupsRequest, _>(frame, |node, request| async move {
                api::groups::delete(&node, &principal, request).await
            }),
        }
    }

    fn take_one_way(&mut self, frame: &Frame) -> Result<(), Fault> {
        if !self.is_ready() {
            return Err(Fault::new(ErrorCode::NotAuthenticated, "the handshake has to come first"));
        }
        if !frame.attachment.is_empty() {
            return Err(malformed("a one-way message of a client has no attachment"));
        }
        match frame.header.api {
            ApiKey::CREDIT => {
                let credit: Credit = decode(frame)?;
                self.feeds.credit(credit);
            }
            ApiKey::REPLICA_ACK => {
                let ack: ReplicaAck = decode(frame)?;
                self.feeds.acknowledge(ack);
            }
            // A newer peer may have messages that mean nothing here.
            other => debug!(api = other.0, "one-way message ignored"),
        }
        Ok(())
    }

    fn handshake(&mut self, frame: &Frame) -> Result<(), Fault> {
        let request: HandshakeRequest = decode(frame)?;
        if request.version_min > PROTOCOL_VERSION || request.version_max < PROTOCOL_VERSION {
            return Err(Fault::new(
                ErrorCode::UnsupportedVersion,
                format!(
                    "this broker speaks version {PROTOCOL_VERSION}, the client {} to {}",
                    request.version_min, request.version_max
                ),
            ));
        }
        if request.client_name.len() > NAME_BYTES_MAX || request.client_version.len() > NAME_BYTES_MAX {
            return Err(Fault::invalid(format!("a client name has at most {NAME_BYTES_MAX} bytes")));
        }
        if !request.namespace.is_empty() {
            return Err(Fault::invalid("there is only the default namespace, whose name is empty"));
        }
        let cluster_id = self.node.controller.image().cluster_id;
        if let Some(expected) = request.cluster_id
            && ClusterId::from(expected) != cluster_id
            && !cluster_id.is_absent()
        {
            return Err(Fault::new(
                ErrorCode::WrongCluster,
                format!(
                    "broker {} belongs to cluster {cluster_id}, not to {}",
                    self.node.node_id,
                    ClusterId::from(expected)
                ),
            ));
        }
        let principal = match &request.broker {
            Some(identity) => Principal::broker(identity, self.node.controller.secret())?,
            None => Principal::anonymous(),
        };
        let reply = HandshakeReply {
            version: PROTOCOL_VERSION,
            features: Vec::new(),
            cluster_id: (!cluster_id.is_absent()).then(|| cluster_id.into()),
            node_id: self.node.node_id.get(),
            broker_version: env!("CARGO_PKG_VERSION").to_owned(),
            produce_window: self.window.limit(),
            max_in_flight: self.node.limits.in_flight_max,
            frame_bytes_max: FRAME_BYTES_MAX as u32,
            authentication_methods: Vec::new(),
            principal: principal.name.clone(),
            idle_timeout_ms: u64::try_from(self.node.limits.idle_timeout.as_millis()).unwrap_or(u64::MAX),
            directory_id: Some(self.node.controller.directory_id().into()),
            broker_epoch: self.node.controller.registration().borrow().map_or(0, BrokerEpoch::get),
        };
        debug!(client = request.client_name, version = request.client_version, "handshake");
        self.outbox.reply::<HandshakeRequest>(frame.header.correlation_id, &reply);
        self.stage = Stage::Ready(Arc::new(principal));
        Ok(())
    }

    /// No rounds are needed, and none is answered as if it had proved anything.
    fn authenticate(&mut self, frame: &Frame) -> Result<Result<(), ApiError>, Fault> {
        let request: AuthenticateRequest = decode(frame)?;
        self.authentication_rounds += 1;
        if self.authentication_rounds > AUTHENTICATION_ROUNDS_MAX {
            return Err(Fault::new(ErrorCode::NotAuthenticated, "too many rounds of authentication"));
        }
        Ok(Err(ApiError::invalid(format!(
            "authentication is not needed: this broker offers no methods, '{}' neither; requests are served as they are",
            request.method
        ))))
    }

    fn metadata(&mut self, principal: Arc<Principal>, frame: &Frame) -> Result<Result<(), ApiError>, Fault> {
        let request: MetadataRequest = decode(frame)?;
        let (reply, image) = match api::metadata::handle(&self.node, &principal, &request) {
            Ok(answer) => answer,
            Err(error) => return Ok(Err(error)),
        };
        let is_complete = api::metadata::is_complete(&reply);
        if is_complete {
            self.outbox.reply::<MetadataRequest>(frame.header.correlation_id, &reply);
        }
        if request.watch {
            self.watch.start(&self.node, request, image);
        }
        if is_complete {
            return Ok(Ok(()));
        }
        self.later::<MetadataRequest, _>(frame, |node, request| async move {
            api::metadata::handle_caught_up(&node, &principal, &request).await
        })
    }

    fn subscribe(
        &mut self,
        principal: &Principal,
        correlation_id: CorrelationId,
        request: &SubscribeRequest,
    ) -> Result<(), ApiError> {
        self.feeds.reserve(SubscriptionId(request.id), request.replica.is_some())?;
        api::subscribe::handle(&self.node, principal, &self.outbox, correlation_id, request);
        Ok(())
    }

    /// Serves a request whose reply carries batches.
    fn serve_bytes(&self, principal: Arc<Principal>, frame: &Frame) -> Result<Result<(), ApiError>, Fault> {
        match frame.header.api {
            ApiKey::READ => self.later_with::<ReadRequest, _>(frame, |node, request| async move {
                api::read::handle(&node, &principal, request).await
            }),
            ApiKey::REPLICA_READ => self
                .later_with::<ReplicaReadRequest, _>(frame, |node, request| async move {
                    api::replica::read(&node, &principal, request).await
                }),
            _ => self.later_with::<ReplicaResetRequest, _>(frame, |node, request| async move {
                api::replica::reset(&node, &principal, request).await
            }),
        }
    }

    /// Leaves a request with a task of its own, whose reply carries batches.
    fn later_with<R, F>(
        &self,
        frame: &Frame,
        handler: impl FnOnce(Arc<Node>, R) -> F + Send + 'static,
    ) -> Result<Result<(), ApiError>, Fault>
    where
        R: Request + Body + Send + 'static,
        F: Future<Output = Result<(R::Response, Vec<Bytes>), ApiError>> + Send + 'static,
    {
        let request: R = decode(frame)?;
        let (node, outbox) = (Arc::clone(&self.node), Arc::clone(&self.outbox));
        let correlation_id = frame.header.correlation_id;
        self.node.tasks.spawn(async move {
            match handler(Arc::clone(&node), request).await {
                Ok((reply, batches)) => outbox.reply_with::<R>(correlation_id, &reply, batches),
                Err(error) => {
                    node.metrics.count_error(R::API, error.code);
                    outbox.reply_error(R::API, correlation_id, &error);
                }
            }
        });
        Ok(Ok(()))
    }

    /// Leaves a request with a task of its own. Their number is bounded by the requests in flight.
    fn later<R, F>(
        &self,
        frame: &Frame,
        handler: impl FnOnce(Arc<Node>, R) -> F + Send + 'static,
    ) -> Result<Result<(), ApiError>, Fault>
    where
        R: Request + Body + Send + 'static,
        F: Future<Output = Result<R::Response, ApiError>> + Send + 'static,
    {
        let request: R = decode(frame)?;
        let (node, outbox) = (Arc::clone(&self.node), Arc::clone(&self.outbox));
        let correlation_id = frame.header.correlation_id;
        self.node.tasks.spawn(async move {
            match handler(Arc::clone(&node), request).await {
                Ok(reply) => outbox.reply::<R>(correlation_id, &reply),
                Err(error) => {
                    node.metrics.count_error(R::API, error.code);
                    outbox.reply_error(R::API, correlation_id, &error);
                }
            }
        });
        Ok(Ok(()))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.node.budget.lock().close(&mut self.window);
        if let Stage::Ready(principal) = &self.stage
            && let Some(node) = principal.node_id
        {
            self.node.controller.connection_lost(node);
        }
    }
}

fn decode<M: Body>(frame: &Frame) -> Result<M, Fault> {
    frame
        .decode_body()
        .map_err(|error| malformed(format!("body of {} does not decode: {error}", frame.header.api.name())))
}

fn malformed(message: impl Into<String>) -> Fault {
    Fault::new(ErrorCode::MalformedFrame, message)
}
