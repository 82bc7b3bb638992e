//! A cluster in this process.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use highwater_broker::Broker;
use highwater_broker::config::{Config, VoterAddress};
use highwater_broker::env::Env;
use highwater_client::wire::{Pool, Settings, TcpConnector};
use highwater_client::{Client, NewTopic, NodeId, Offset, PartitionId, ProducerRecord, Receipt, TopicId};
use highwater_protocol::messages::ReplicaChecksumRequest;
use tempfile::TempDir;

/// Nothing here takes this long, however busy the machine is.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// Small, so that there are sealed segments.
const SEGMENT_BYTES: &str = "1048576";

const POLL: Duration = Duration::from_millis(20);

pub(crate) struct Cluster {
    directory: TempDir,
    voters: Vec<VoterAddress>,
    brokers: BTreeMap<u32, Broker>,
    /// What is changed in the settings of every broker.
    pub(crate) change: fn(&mut Config),
}

impl Cluster {
    pub(crate) async fn start(count: u32) -> Self {
        let mut cluster = Self::unstarted(count);
        cluster.launch_all().await;
        cluster
    }

    pub(crate) fn unstarted(count: u32) -> Self {
        if let Ok(filter) = std::env::var("HIGHWATER_TEST_LOG") {
            let _set_already =
                tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        }
        let taken: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let address = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
        let voters = (1..)
            .zip(&taken)
            .map(|(id, taken)| VoterAddress { node_id: NodeId(id), address: address(taken) });
        let voters: Vec<_> = voters.collect();
        drop(taken);
        let directory = tempfile::tempdir().unwrap();
        Self { directory, voters, brokers: BTreeMap::new(), change: |_| {} }
    }

    pub(crate) async fn launch_all(&mut self) {
        for id in 1..=self.voters.len() as u32 {
            self.launch(id).await;
        }
        for broker in self.brokers.values() {
            tokio::time::timeout(LIMIT, broker.ready()).await.unwrap().unwrap();
        }
    }

    pub(crate) fn data_dir(&self, id: u32) -> PathBuf {
        self.directory.path().join(id.to_string())
    }

    async fn launch(&mut self, id: u32) {
        let mut config = Config::default();
        config.node_id = NodeId(id);
        config.listen.clone_from(&self.voters[id as usize - 1].address);
        config.http = None;
        config.data_dir = self.data_dir(id);
        config.disk_reserve = 0;
        config.voters.clone_from(&self.voters);
        (self.change)(&mut config);
        let deadline = tokio::time::Instant::now() + LIMIT;
        let broker = loop {
            // What was killed may hold its directory or its port for a moment.
            match Box::pin(Broker::launch(config.clone(), Env::real())).await {
                Ok(broker) => break broker,
                Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
            }
            turn().await;
        };
        self.brokers.insert(id, broker);
    }

    /// Ends a broker without a word.
    pub(crate) fn kill(&mut self, id: u32) {
        drop(self.brokers.remove(&id).unwrap());
    }

    pub(crate) async fn restart(&mut self, id: u32) {
        self.launch(id).await;
        tokio::time::timeout(LIMIT, self.brokers[&id].ready()).await.unwrap().unwrap();
    }

    pub(crate) async fn client(&self) -> Client {
        let addresses = self.voters.iter().map(|voter| voter.address.clone());
        Client::builder(addresses).name("replication").connect().await.unwrap()
    }

    pub(crate) async fn create(&self, client: &Client, topic: &str, partitions: u32) {
        let new =
            NewTopic::new(topic).partitions(partitions).replication(3).config("segment_bytes", SEGMENT_BYTES);
        client.admin().create_topic(new).await.unwrap();
        self.wait_in_sync(client, topic).await;
    }

    pub(crate) async fn leader(&self, client: &Client, topic: &str) -> u32 {
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let metadata = client.admin().metadata(&[topic]).await.unwrap();
            if let Some(leader) = metadata.topics[0].partitions[0].leader {
                return leader.get();
            }
            assert!(tokio::time::Instant::now() < deadline, "no leader: {metadata:?}");
            turn().await;
        }
    }

    /// Waits until every replica of every partition is in sync.
    pub(crate) async fn wait_in_sync(&self, client: &Client, topic: &str) {
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let metadata = client.admin().metadata(&[topic]).await;
            let all = metadata.as_ref().is_ok_and(|metadata| {
                metadata.topics[0].partitions.iter().all(|partition| {
                    partition.leader.is_some() && partition.in_sync.len() == partition.replicas.len()
                })
            });
            if all {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "not in sync: {metadata:?}");
            turn().await;
        }
    }

    /// Changes one byte in the middle of what is written of a sealed segment of a broker.
    pub(crate) fn damage_sealed_segment(&self, id: u32) {
        let mut segments = Vec::new();
        find_segments(&self.data_dir(id), &mut segments);
        segments.sort();
        // The first one is sealed when there is another.
        assert!(segments.len() > 1, "{segments:?}");
        let bytes = std::fs::read(&segments[0]).unwrap();
        // Behind the last batch there may be reserved room, all zeroes: damage there is none of anybody's records.
        let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&segments[0]).unwrap();
        file.write_all_at(&[bytes[written / 2] ^ 0x40], written as u64 / 2).unwrap();
        file.sync_all().unwrap();
    }

    /// Waits until a broker has found a corrupt range, and has none any more.
    pub(crate) async fn wait_scrubbed_and_healed(&self, id: u32) {
        let metrics = self.brokers[&id].metrics();
        let deadline = tokio::time::Instant::now() + LIMIT;
        while metrics.refilled_ranges.get() == 0 || metrics.corrupt_ranges.get() != 0 {
            let text =
                format!("{} corrupt, {} filled", metrics.corrupt_ranges.get(), metrics.refilled_ranges.get());
            assert!(tokio::time::Instant::now() < deadline, "{text}");
            turn().await;
        }
    }

    /// Waits until the checksums of all replicas of partition 0 are the same, over the same records.
    pub(crate) async fn wait_equal(&self, client: &Client, topic: &str) {
        let metadata = client.admin().metadata(&[topic]).await.unwrap();
        let topic_id = metadata.topics[0].topic_id;
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let mut found = Vec::new();
            for voter in &self.voters {
                found.push(checksum(&voter.address, topic_id).await);
            }
            if found.iter().all(|one| *one == found[0] && one.is_some_and(|(end, ..)| end > 0)) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{found:?}");
            turn().await;
        }
    }

    pub(crate) async fn shutdown(self) {
        for (_, broker) in self.brokers {
            broker.shutdown().await.unwrap();
        }
    }
}

/// End, checksum and batches of all that is committed in partition 0 of one replica; `None` if a range is corrupt.
async fn checksum(address: &str, topic_id: TopicId) -> Option<(u64, u32, u64)> {
    let pool = Pool::new(Arc::new(TcpConnector), Settings::default());
    let connection = pool.get(address).await.unwrap();
    let request = ReplicaChecksumRequest {
        topic_id: Some(topic_id.into()),
        partition: 0,
        start: 0,
        end: 0,
        bytes_max: 0,
        key_slices: 0,
        key_slice: 0,
    };
    let deadline = tokio::time::Instant::now() + LIMIT;
    let (reply, _) = connection.request(&request, deadline).await.unwrap();
    reply.corrupt.is_empty().then_some((reply.end, reply.checksum, reply.batches))
}

fn find_segments(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find_segments(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "segment") {
            into.push(path);
        }
    }
}

/// Produces numbers, one record each, and waits until all are acknowledged.
pub(crate) async fn produce(client: &Client, topic: &str, range: Range<u64>) -> Vec<Receipt> {
    produce_values(client, topic, &numbers(range)).await
}

/// Produces records, and waits until all are acknowledged.
pub(crate) async fn produce_values(client: &Client, topic: &str, values: &[String]) -> Vec<Receipt> {
    let producer = client.producer().batch_bytes(1024).build();
    let mut deliveries = Vec::new();
    for value in values {
        deliveries.push(producer.send(ProducerRecord::new(topic).value(value)).await.unwrap());
    }
    let mut receipts = Vec::new();
    for delivery in deliveries {
        receipts.push(tokio::time::timeout(LIMIT, delivery).await.unwrap().unwrap());
    }
    tokio::time::timeout(LIMIT, producer.close()).await.unwrap().unwrap();
    receipts
}

/// Everything in partition 0.
pub(crate) async fn read(client: &Client, topic: &str) -> Vec<String> {
    let (mut values, mut from) = (Vec::new(), Offset(0));
    loop {
        let read = client.admin().read(topic, PartitionId(0), from, 1 << 20).await.unwrap();
        for batch in &read.batches {
            for record in batch {
                let record = record.unwrap();
                from = Offset(record.offset.get() + 1);
                values.push(String::from_utf8(record.value.unwrap().to_vec()).unwrap());
            }
        }
        if from >= read.high_watermark {
            return values;
        }
    }
}

pub(crate) fn numbers(range: Range<u64>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

/// The pause between two looks at a condition.
async fn turn() {
    tokio::time::interval_at(tokio::time::Instant::now() + POLL, POLL).tick().await;
}
