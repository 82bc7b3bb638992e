//! The state machine: the cluster image in memory, its last snapshot in the database.

use std::io::Cursor;
use std::sync::Arc;

use arc_swap::ArcSwap;
use highwater_broker_core::controller::codec::{CodecError, decode_command, encode_outcome};
use highwater_broker_core::controller::image::ClusterImage;
use highwater_broker_core::controller::snapshot;
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta};
use openraft::{AnyError, EntryPayload, OptionalSend, StorageIOError};
use tokio::sync::watch;
use tracing::{debug, error, info};

use super::{RaftStore, SNAPSHOT, SNAPSHOT_META, StoreError, failure};
use crate::controller::consensus::{Entry, LogId, Member, Membership, Outcome, StoreFailure, Types};

/// What everybody else sees of the state machine.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    image: Arc<ArcSwap<ClusterImage>>,
    versions: watch::Sender<u64>,
}

impl Shown {
    pub(crate) fn new() -> Self {
        Self { image: Arc::default(), versions: watch::channel(0).0 }
    }

    pub(crate) const fn image(&self) -> &Arc<ArcSwap<ClusterImage>> {
        &self.image
    }

    pub(crate) fn versions(&self) -> watch::Receiver<u64> {
        self.versions.subscribe()
    }

    fn show(&self, image: &ClusterImage) {
        if *self.versions.borrow() == image.version {
            return;
        }
        self.image.store(Arc::new(image.clone()));
        self.versions.send_replace(image.version);
    }
}

/// The image, and how far it is.
#[derive(Debug)]
pub(crate) struct Machine {
    store: RaftStore,
    shown: Shown,
    image: ClusterImage,
    applied: Option<LogId>,
    membership: Membership,
}

impl Machine {
    /// Goes on from the last snapshot, which is shown at once: all of it is committed, but it may be old.
    pub(crate) async fn open(store: RaftStore, shown: Shown) -> Result<Self, StoreError> {
        let (meta, image) = store.blocking(load).await?;
        let meta = meta.unwrap_or_default();
        shown.show(&image);
        Ok(Self { store, shown, image, applied: meta.last_log_id, membership: meta.last_membership })
    }

    /// Carries out one command and encodes what came of it. What this broker does not know it cannot pass over, or its
    /// image would differ from the others': it stops taking part, and says that it has to be upgraded.
    fn carry_out(&mut self, at: LogId, bytes: &[u8]) -> Result<Vec<u8>, Box<StoreFailure>> {
        let cannot = |error: CodecError| {
            error!(%error, "a decided change cannot be carried out by this broker");
            Box::new(StoreFailure::from(StorageIOError::apply(at, AnyError::new(&error))))
        };
        let command = decode_command(bytes).map_err(cannot)?;
        let outcome = self.image.apply(&command);
        debug!(version = self.image.version, ?outcome, "cluster image changed");
        encode_outcome(&outcome).map_err(cannot)
    }
}

pub(super) type Meta = SnapshotMeta<u64, Member>;

pub(super) fn load(store: &RaftStore) -> Result<(Option<Meta>, ClusterImage), StoreError> {
    let meta: Option<Meta> = store.get(SNAPSHOT_META)?;
    let image = match store.bytes(SNAPSHOT)? {
        Some(bytes) => decode_image(&bytes)?,
        None => ClusterImage::default(),
    };
    Ok((meta, image))
}

fn decode_image(bytes: &[u8]) -> Result<ClusterImage, StoreError> {
    snapshot::decode(bytes).map_err(|error| StoreError::Io(std::io::Error::other(error.to_string())))
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Photographer;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), StoreFailure> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StoreFailure>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut outcomes = Vec::new();
        for entry in entries {
            self.applied = Some(entry.log_id);
            let outcome = match entry.payload {
                EntryPayload::Blank => Vec::new(),
                EntryPayload::Normal(change) => {
                    self.carry_out(entry.log_id, &change.command).map_err(|failure| *failure)?
                }
                EntryPayload::Membership(membership) => {
                    info!(%membership, "the members of consensus have changed");
                    self.membership = Membership::new(Some(entry.log_id), membership);
                    Vec::new()
                }
            };
            outcomes.push(Outcome { outcome, version: self.image.version });
        }
        self.shown.show(&self.image);
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Photographer {
        Photographer {
            store: self.store.clone(),
            image: self.image.clone(),
            applied: self.applied,
            membership: self.membership.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StoreFailure> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &Meta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StoreFailure> {
        let installed = {
            let (store, meta, bytes) = (self.store.clone(), meta.clone(), snapshot.into_inner());
            store
                .blocking(move |store| {
                    let image = decode_image(&bytes)?;
                    save(store, &meta, &bytes)?;
                    Ok(image)
                })
                .await
        };
        let failed = |error| failure(|error: AnyError| StorageIOError::write_snapshot(None, error), &error);
        self.image = installed.map_err(failed)?;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.shown.show(&self.image);
        info!(version = self.image.version, "the cluster image was taken over from the controller");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StoreFailure> {
        let found =
            self.store.blocking(|store| Ok((store.get::<Meta>(SNAPSHOT_META)?, store.bytes(SNAPSHOT)?)));
        match found.await {
            Ok((Some(meta), Some(bytes))) => {
                Ok(Some(Snapshot { meta, snapshot: Box::new(Cursor::new(bytes)) }))
            }
            Ok(_) => Ok(None),
            Err(error) => Err(failure(|error: AnyError| StorageIOError::read_snapshot(None, error), &error)),
        }
    }
}

fn save(store: &RaftStore, meta: &Meta, bytes: &[u8]) -> Result<(), StoreError> {
    store.write(false, |writing| {
        // One that was made here may be late: a later one has come from the leader meanwhile.
        let present = writing.get::<Meta>(SNAPSHOT_META)?.and_then(|present| present.last_log_id);
        if present > meta.last_log_id {
            return Ok(());
        }
        writing.put(SNAPSHOT_META, meta)?;
        writing.state.insert(SNAPSHOT, bytes)?;
        Ok(())
    })
}

/// Makes a snapshot of the image as it was.
#[derive(Debug)]
pub(crate) struct Photographer {
    store: RaftStore,
    image: ClusterImage,
    applied: Option<LogId>,
    membership: Membership,
}

impl RaftSnapshotBuilder<Types> for Photographer {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StoreFailure> {
        let index = self.applied.map_or(0, |applied| applied.index);
        let term = self.applied.map_or(0, |applied| applied.leader_id.term);
        let meta = Meta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            snapshot_id: format!("{term}-{index}-{}", self.image.version),
        };
        let (image, saved_meta) = (self.image.clone(), meta.clone());
        let saved = self.store.blocking(move |store| {
            let bytes = snapshot::encode(&image)
                .map_err(|error| StoreError::Io(std::io::Error::other(error.to_string())))?;
            save(store, &saved_meta, &bytes)?;
            Ok(bytes)
        });
        match saved.await {
            Ok(bytes) => Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(bytes)) }),
            Err(error) => Err(failure(|error: AnyError| StorageIOError::write_snapshot(None, error), &error)),
        }
    }
}
