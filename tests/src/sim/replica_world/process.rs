//! One broker process: the shipping replica machine over the shipping log on a simulated disk.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use highwater_broker::storage::config::StoreConfig;
use highwater_broker::storage::error::Error;
use highwater_broker::storage::log::{Log, StampedBatch};
use highwater_broker::storage::sink::{FlushOutcome, FlushSink};
use highwater_broker::storage::store::{BootState, Store};
use highwater_broker_core::controller::image::ClusterImage;
use highwater_broker_core::durability::Durability;
use highwater_broker_core::replica::{Assignment, Condition, Input, Opened, Output, Replica};
use highwater_broker_core::time::Mono;
use highwater_protocol::batch::BatchHeader;
use highwater_protocol::ids::{BrokerEpoch, DirectoryId, NodeId, Offset};

use crate::sim::batches::Seen;
use crate::sim::disk::SimDisk;
use crate::sim::log_world::{Outcomes, PARTITION, ROOT, small_log};

/// Records of one batch that wait to be acknowledged.
#[derive(Debug)]
pub struct Pending {
    /// The offset after the last one.
    pub end: Offset,
    /// The records.
    pub records: Vec<Seen>,
}

/// A running broker.
#[derive(Debug)]
pub struct Process {
    /// Which process this is in the whole history.
    pub incarnation: u64,
    /// Its registration.
    pub broker_epoch: BrokerEpoch,
    /// The version of the image that has the registration.
    pub registered_at: u64,
    /// The version of the image that it knows.
    pub version: u64,
    /// Its log.
    pub log: Log,
    /// Its data directory.
    pub store: Arc<Store>,
    /// Its machine.
    pub replica: Replica,
    /// Appended and not acknowledged.
    pub pending: Vec<Pending>,
    /// Pushed batches that the machine is asked about.
    pub fetched: Vec<StampedBatch>,
    /// The log has to be verified.
    pub suspect: bool,
    /// What the machine wants done.
    pub outputs: Vec<Output>,
    outcomes: Arc<Outcomes>,
}

/// A data directory and a log that were opened, before the broker is registered.
#[derive(Debug)]
pub struct Started {
    /// How the last process ended.
    pub boot: BootState,
    store: Arc<Store>,
    log: Log,
    outcomes: Arc<Outcomes>,
    /// Recovery has found damage.
    pub damaged: bool,
}

impl Started {
    /// Opens directory and log.
    ///
    /// # Errors
    /// When one of them cannot be opened.
    pub fn open(disk: &SimDisk, durability: Durability) -> Result<Self, Error> {
        let config = StoreConfig { disk_reserve_bytes: 0, ..StoreConfig::default() };
        let (store, report) = Store::open(disk.mount(), Path::new(ROOT), config, DirectoryId(0xd1))?;
        let outcomes = Arc::new(Outcomes::default());
        let sink: Arc<dyn FlushSink> = Arc::<Outcomes>::clone(&outcomes);
        let (log, recovery) = store.open_log(PARTITION, small_log(durability), sink)?;
        let damaged = !recovery.new_holes.is_empty() || !log.holes().is_empty();
        Ok(Self { boot: report.boot, store, log, outcomes, damaged })
    }

    /// Gives up everything from the first damage on.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn cut_at_damage(&mut self) -> Result<(), Error> {
        match self.log.holes().first().map(|hole| hole.start) {
            Some(start) => self.log.truncate(start).map(drop),
            None => Ok(()),
        }
    }

    /// Goes on as a registered broker.
    #[must_use]
    pub fn registered(
        self,
        incarnation: u64,
        node: NodeId,
        (broker_epoch, registered_at): (BrokerEpoch, u64),
        durability: Durability,
    ) -> Process {
        let log = self.log;
        let replica = Replica::open(Opened {
            node,
            log_start: log.log_start(),
            log_end: log.log_end(),
            flushed_end: log.flushed_end(),
            high_watermark: log.durable_end().max(log.log_start()).min(log.log_end()),
            log_generation: log.log_generation(),
            append_time: log.last_append_time().max(0),
            epochs: log.epochs().to_vec(),
            durability_wanted: durability,
            durability_effective: durability,
        });
        Process {
            incarnation,
            broker_epoch,
            registered_at,
            version: 0,
            log,
            store: self.store,
            replica,
            pending: Vec::new(),
            fetched: Vec::new(),
            suspect: false,
            outputs: Vec::new(),
            outcomes: self.outcomes,
        }
    }
}

impl Process {
    /// Gives an input to the machine. What follows from it is in `outputs`.
    pub fn step(&mut self, now: Mono, input: Input) {
        self.replica.step(now, input, &mut self.outputs);
    }

    /// Follows an image that is not older than the registration.
    pub fn follow(&mut self, now: Mono, image: &ClusterImage) {
        if image.version < self.registered_at || image.version <= self.version {
            return;
        }
        self.version = image.version;
        if let Some(assignment) = assignment(image) {
            self.step(now, Input::Assigned { assignment, own_epoch: self.broker_epoch });
        }
    }

    /// Passes flush completions on.
    pub fn take_outcomes(&mut self, now: Mono) {
        for outcome in self.outcomes.take() {
            match outcome {
                FlushOutcome::Flushed { log_generation, upto } => {
                    self.log.flushed(log_generation, upto);
                    self.step(now, Input::Flushed { log_generation, upto });
                }
                FlushOutcome::Failed { log_generation, .. } => {
                    self.step(now, Input::FlushFailed { log_generation });
                }
            }
        }
    }

    /// Takes the acknowledgements that can be given by now, each with the epoch that it is given in.
    pub fn take_acknowledged(&mut self) -> Vec<(Pending, u32)> {
        let epoch = self.replica.epoch().get();
        let (reached, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending| self.replica.reached(Condition::Committed(pending.end)).is_some());
        self.pending = waiting;
        reached.into_iter().map(|pending| (pending, epoch)).collect()
    }

    /// The batches in pushed bytes, as they are appended.
    ///
    /// # Errors
    /// When a checksum is wrong: nothing like that may ever be pushed.
    pub fn parse(pushed: &[Bytes]) -> Result<Vec<StampedBatch>, String> {
        let mut batches = Vec::new();
        let mut bytes = Bytes::from(pushed.concat());
        while !bytes.is_empty() {
            let header =
                BatchHeader::decode_verified(&bytes, PARTITION).map_err(|error| error.to_string())?;
            batches.push(StampedBatch::from_replicated(bytes.split_to(header.length()), header));
        }
        Ok(batches)
    }
}

/// The partition in an image, as the machine is told about it.
#[must_use]
pub fn assignment(image: &ClusterImage) -> Option<Assignment> {
    let topic = image.topic(PARTITION.topic_id)?;
    let partition = image.partition(PARTITION)?;
    let registered = |node: &NodeId| {
        let epoch = image.broker(*node).map_or(BrokerEpoch(0), |broker| broker.broker_epoch);
        (*node, epoch)
    };
    Some(Assignment {
        leader: partition.leader,
        epoch: partition.leader_epoch,
        version: partition.version,
        replicas: partition.replicas.clone(),
        adding: partition.adding.clone(),
        in_sync: partition.in_sync.iter().map(registered).collect(),
        eligible: partition.eligible.clone(),
        min_in_sync: topic.min_in_sync(),
        durability_effective: partition.durability_effective,
        durability_wanted: topic.config.durability,
        unclean_epoch: partition.unclean_epoch,
    })
}
