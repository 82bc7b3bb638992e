//! The controller of a cluster of one: proposals go through the command machine, and every change is on stable storage
//! before anybody is told.
//!
//! Proposals that come together are carried out together and cost one snapshot. A consensus log comes behind the same
//! handle later.

use std::sync::Arc;

use arc_swap::ArcSwap;
use highwater_broker_core::controller::command::{Command, Refusal, Reply};
use highwater_broker_core::controller::image::ClusterImage;
use highwater_broker_core::controller::snapshot;
use highwater_protocol::error_code::ErrorCode;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::api::ApiError;
use crate::io_thread;
use crate::storage::file_system::FileSystem;
use crate::storage::store::Store;

/// The name of the state file that holds the image.
pub(crate) const TOPICS_STATE: &str = "topics";

/// Proposals that may wait. Whoever proposes more waits for room.
const PROPOSALS_MAX: usize = 1024;

/// Proposes changes and shows the last image.
#[derive(Debug, Clone)]
pub(crate) struct ControllerHandle {
    proposals: mpsc::Sender<Proposal>,
    image: Arc<ArcSwap<ClusterImage>>,
    versions: watch::Receiver<u64>,
}

#[derive(Debug)]
struct Proposal {
    command: Command,
    validate_only: bool,
    reply: oneshot::Sender<Result<Reply, ApiError>>,
}

impl ControllerHandle {
    /// The last image that is on stable storage.
    pub(crate) fn image(&self) -> Arc<ClusterImage> {
        self.image.load_full()
    }

    /// Changes whenever there is a new image.
    pub(crate) fn versions(&self) -> watch::Receiver<u64> {
        self.versions.clone()
    }

    /// Carries a command out, or, with `validate_only`, says what would come of it. The change is on stable storage when
    /// this returns. Dropping the future does not take the proposal back.
    pub(crate) async fn propose(&self, command: Command, validate_only: bool) -> Result<Reply, ApiError> {
        let stopped = || ApiError::new(ErrorCode::ShuttingDown, "the controller has stopped");
        let (reply, receiver) = oneshot::channel();
        let proposal = Proposal { command, validate_only, reply };
        self.proposals.send(proposal).await.map_err(|_| stopped())?;
        receiver.await.map_err(|_| stopped())?
    }
}

/// The task that owns the image.
#[derive(Debug)]
pub(crate) struct ControllerService {
    proposals: mpsc::Receiver<Proposal>,
    shared: Arc<ArcSwap<ClusterImage>>,
    versions: watch::Sender<u64>,
    image: ClusterImage,
    store: Arc<Store>,
    file_system: Arc<dyn FileSystem>,
}

impl ControllerService {
    /// A controller that goes on from `image`.
    pub(crate) fn new(
        image: ClusterImage,
        store: Arc<Store>,
        file_system: Arc<dyn FileSystem>,
    ) -> (Self, ControllerHandle) {
        let (sender, proposals) = mpsc::channel(PROPOSALS_MAX);
        let (versions, receiver) = watch::channel(image.version);
        let shared = Arc::new(ArcSwap::from_pointee(image.clone()));
        let handle = ControllerHandle { proposals: sender, image: Arc::clone(&shared), versions: receiver };
        (Self { proposals, shared, versions, image, store, file_system }, handle)
    }

    /// Serves until `shutdown` is cancelled. What was taken up by then is finished.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut proposals = Vec::new();
        loop {
            tokio::select! {
                count = self.proposals.recv_many(&mut proposals, PROPOSALS_MAX) => {
                    if count == 0 {
                        return;
                    }
                }
                () = shutdown.cancelled() => return,
            }
            self.carry_out(&mut proposals).await;
        }
    }

    async fn carry_out(&mut self, proposals: &mut Vec<Proposal>) {
        let mut next = self.image.clone();
        let mut replies = Vec::with_capacity(proposals.len());
        for Proposal { command, validate_only, reply } in proposals.drain(..) {
            let result = if validate_only { next.clone().apply(&command) } else { next.apply(&command) };
            if let (Ok(reply), false) = (&result, validate_only) {
                info!(version = next.version, ?reply, "cluster image changed");
            }
            replies.push((reply, result.map_err(refused)));
        }
        if next.version != self.image.version
            && let Err(error) = self.save(&next).await
        {
            error!(%error, "the cluster image could not be saved, so nothing of it was changed; check the disk");
            for (reply, result) in replies {
                let _gone = reply.send(result.and(Err(error.clone())));
            }
            return;
        }
        self.image = next;
        if *self.versions.borrow() != self.image.version {
            self.shared.store(Arc::new(self.image.clone()));
            self.versions.send_replace(self.image.version);
        }
        for (reply, result) in replies {
            let _gone = reply.send(result);
        }
    }

    async fn save(&self, image: &ClusterImage) -> Result<(), ApiError> {
        let bytes =
            snapshot::encode(image).map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
        let store = Arc::clone(&self.store);
        let saved = io_thread::run(&*self.file_system, move || store.write_state(TOPICS_STATE, &bytes)).await;
        match saved {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) if error.is_full() => Err(ApiError::new(ErrorCode::DiskFull, error.to_string())),
            Some(Err(error)) => Err(ApiError::new(ErrorCode::StorageError, error.to_string())),
            None => Err(ApiError::new(ErrorCode::StorageError, "the I/O thread ended")),
        }
    }
}

fn refused(refusal: Refusal) -> ApiError {
    ApiError::new(refusal.code(), refusal.to_string())
}
