//! A cluster in this process.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use highwater_broker::Broker;
use highwater_broker::config::{Config, VoterAddress};
use highwater_broker::env::Env;
use highwater_client::{Client, NewTopic, NodeId, Offset, PartitionId, ProducerRecord, Receipt};
use tempfile::TempDir;

/// Nothing here takes this long, however busy the machine is.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

const POLL: Duration = Duration::from_millis(20);

pub(crate) struct Cluster {
    directory: TempDir,
    voters: Vec<VoterAddress>,
    brokers: BTreeMap<u32, Broker>,
}

impl Cluster {
    pub(crate) async fn start(count: u32) -> Self {
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
        let mut cluster = Self { directory, voters, brokers: BTreeMap::new() };
        for id in 1..=count {
            cluster.launch(id).await;
        }
        for broker in cluster.brokers.values() {
            tokio::time::timeout(LIMIT, broker.ready()).await.unwrap().unwrap();
        }
        cluster
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
        let deadline = tokio::time::Instant::now() + LIMIT;
        let broker = loop {
            // What was killed may hold its directory or its port for a moment.
            match Box::pin(Broker::launch(config.clone(), Env::real())).await {
                Ok(broker) => break broker,
                Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(POLL).await;
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
        let new = NewTopic::new(topic).partitions(partitions).replication(3);
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
            tokio::time::sleep(POLL).await;
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
            tokio::time::sleep(POLL).await;
        }
    }

    pub(crate) async fn shutdown(self) {
        for (_, broker) in self.brokers {
            broker.shutdown().await.unwrap();
        }
    }
}

/// Produces numbers, one record each, and waits until all are acknowledged.
pub(crate) async fn produce(client: &Client, topic: &str, range: Range<u64>) -> Vec<Receipt> {
    let producer = client.producer().batch_bytes(1024).build();
    let mut deliveries = Vec::new();
    for number in range {
        let value = number.to_string();
        deliveries.push(producer.send(ProducerRecord::new(topic).value(&value)).await.unwrap());
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
