//! The ring and the bounded loads of placement.

use anyhow::{Result, ensure};
use highwater_broker_core::controller::placement::{Place, assign_new, plan_moves};
use highwater_protocol::ids::{NodeId, PartitionId, TopicId, TopicPartition};

use super::{Each, Repeat};

const BROKERS: u32 = 12;
const RACKS: u32 = 3;
const PARTITIONS: u32 = 1000;
const REPLICATION: usize = 3;

fn places() -> Vec<Place> {
    let place = |node| Place { node: NodeId(node), rack: format!("rack-{}", node % RACKS) };
    (1..=BROKERS).map(place).collect()
}

fn partitions() -> Vec<TopicPartition> {
    (0..PARTITIONS).map(|id| TopicPartition::new(TopicId(1), PartitionId(id))).collect()
}

pub(super) fn place() -> Result<Box<dyn Repeat>> {
    let (places, partitions) = (places(), partitions());
    Ok(Box::new(Each(move || {
        let placed = assign_new(&partitions, REPLICATION, &[], &places);
        ensure!(placed.iter().all(|placed| placed.replicas.len() == REPLICATION), "replicas are missing");
        Ok(placed)
    })))
}

pub(super) fn leave() -> Result<Box<dyn Repeat>> {
    let mut places = places();
    let placed = assign_new(&partitions(), REPLICATION, &[], &places);
    places.pop();
    Ok(Box::new(Each(move || {
        let moves = plan_moves(&placed, &places);
        ensure!(!moves.is_empty(), "nobody takes what the broker had");
        Ok(moves)
    })))
}
