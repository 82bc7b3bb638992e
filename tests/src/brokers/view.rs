//! The cluster in the eyes of one broker.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use highwater_protocol::messages::{
    DescribeClusterReply, DescribeClusterRequest, MetadataReply, MetadataRequest, PartitionInfo,
};

use crate::{peer, wait};

/// How long a broker may take to answer: one that is paused or cut off is left out.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Who has a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Who leads it, if anyone.
    pub leader: Option<u32>,
    /// The epoch of the leader.
    pub epoch: u32,
    /// Who is assigned a replica, preferred leader first.
    pub replicas: Vec<u32>,
    /// Who is in sync.
    pub in_sync: Vec<u32>,
}

/// What a broker said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The version of the cluster image.
    pub version: u64,
    /// Who is the controller, if anyone.
    pub controller: Option<u32>,
    /// Who is registered.
    pub brokers: Vec<u32>,
    /// The partitions of the topic asked for; empty if there is no such topic.
    pub partitions: BTreeMap<u32, Place>,
}

impl View {
    /// Whether there are partitions, and each has a leader and all its replicas in sync.
    #[must_use]
    pub fn is_in_sync(&self) -> bool {
        !self.partitions.is_empty()
            && self.partitions.values().all(|place| {
                place.leader.is_some() && place.replicas.iter().all(|node| place.in_sync.contains(node))
            })
    }

    /// The partitions that a broker leads.
    #[must_use]
    pub fn led_by(&self, node: u32) -> Vec<u32> {
        let led = self.partitions.iter().filter(|(_, place)| place.leader == Some(node));
        led.map(|(partition, _)| *partition).collect()
    }

    /// The leader of a partition.
    ///
    /// # Errors
    /// When it has none.
    pub fn leader(&self, partition: u32) -> Result<u32> {
        let place = self.partitions.get(&partition);
        place.and_then(|place| place.leader).with_context(|| format!("partition {partition} has no leader"))
    }
}

/// Asks a broker for the state of the whole cluster.
pub(super) async fn status(address: SocketAddr) -> Result<DescribeClusterReply> {
    let asking = async {
        let (mut writer, mut reader, _) = peer::connect(address, "onlooker").await?;
        writer.request(&DescribeClusterRequest {}, &[]).await?;
        let frame = reader.next().await?.context("the connection ended")?;
        peer::reply_to::<DescribeClusterRequest>(&frame)
    };
    wait::within("a broker describes the cluster", ANSWER_LIMIT, asking).await?
}

/// Asks a broker.
pub(super) async fn of(address: SocketAddr, topic: Option<&str>) -> Result<View> {
    wait::within("a broker tells what it knows", ANSWER_LIMIT, ask(address, topic)).await?
}

async fn ask(address: SocketAddr, topic: Option<&str>) -> Result<View> {
    let (mut writer, mut reader, _) = peer::connect(address, "onlooker").await?;
    let names = topic.into_iter().map(str::to_owned).collect();
    writer.request(&MetadataRequest { names, ..MetadataRequest::default() }, &[]).await?;
    let frame = reader.next().await?.context("the connection ended")?;
    let reply: MetadataReply = peer::reply_to::<MetadataRequest>(&frame)?;
    let mut brokers: Vec<_> = reply.brokers.iter().map(|broker| broker.node_id).collect();
    brokers.sort_unstable();
    let partitions = reply.topics.into_iter().flat_map(|topic| topic.partitions);
    Ok(View {
        version: reply.version,
        controller: Some(reply.controller).filter(|node| *node > 0),
        brokers,
        partitions: partitions.map(|info| (info.partition, place_of(info))).collect(),
    })
}

fn place_of(info: PartitionInfo) -> Place {
    Place {
        leader: Some(info.leader).filter(|node| *node > 0),
        epoch: info.leader_epoch,
        replicas: info.replicas,
        in_sync: info.in_sync,
    }
}
