//! The state of the cluster, what operators ask of it, and metadata that is pushed. One broker: what takes several is
//! tested with several.

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::messages::{
    AlterClusterReply, AlterClusterRequest, AlterTopicRequest, ClusterOperation, DeleteTopicRequest,
    DescribeClusterRequest, ErrorReply, MetadataPush, MetadataRequest,
};

use crate::support::{Peer, broker, code};

async fn alter(peer: &mut Peer, request: AlterClusterRequest) -> Result<AlterClusterReply, ErrorReply> {
    peer.call(&request, &[]).await
}

fn operation(operation: ClusterOperation) -> AlterClusterRequest {
    AlterClusterRequest { operation: operation.into(), ..AlterClusterRequest::default() }
}

#[tokio::test]
async fn a_cluster_of_one_describes_itself_and_takes_what_makes_sense_for_one() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |_| {}).await;
    let mut peer = Peer::connect(&broker, 1 << 20).await;
    peer.create("t", 3, "fsync").await;
    let state = peer.call(&DescribeClusterRequest {}, &[]).await.unwrap();
    let node_id = state.brokers[0].node_id;
    assert_eq!((state.controller, state.voters.as_slice()), (node_id, [node_id].as_slice()));
    assert_eq!((state.brokers[0].state.as_str(), state.brokers[0].voter), ("active", true));
    assert_eq!((state.brokers[0].replicas, state.brokers[0].leaders), (3, 3));
    assert_eq!((state.partitions, state.partitions_offline, state.partitions_under_replicated), (3, 0, 0));

    let throttle = AlterClusterRequest { bytes_per_second: 5000, ..operation(ClusterOperation::Throttle) };
    alter(&mut peer, throttle).await.unwrap();
    let state = peer.call(&DescribeClusterRequest {}, &[]).await.unwrap();
    assert_eq!(state.move_bytes_per_second, 5000);
    let nothing = alter(&mut peer, operation(ClusterOperation::Rebalance)).await.unwrap();
    assert_eq!((nothing.replicas_moved, nothing.leaders_moved, nothing.moves.len()), (0, 0, 0));

    let drain = AlterClusterRequest { node_id, ..operation(ClusterOperation::Drain) };
    let refused = alter(&mut peer, drain).await.unwrap_err();
    assert_eq!(code(refused.code), ErrorCode::Conflict);
    assert!(refused.message.contains("add a broker first"), "{}", refused.message);
    let remove = AlterClusterRequest { node_id, ..operation(ClusterOperation::Remove) };
    assert_eq!(code(alter(&mut peer, remove).await.unwrap_err().code), ErrorCode::Conflict);
    let led = AlterClusterRequest {
        node_id,
        topic: "t".into(),
        accept_loss: true,
        ..operation(ClusterOperation::ElectUnclean)
    };
    let refused = alter(&mut peer, led).await.unwrap_err();
    assert!(refused.message.contains("nothing has to be given up"), "{}", refused.message);
    assert_eq!(
        code(alter(&mut peer, operation(ClusterOperation::Unspecified)).await.unwrap_err().code),
        ErrorCode::InvalidRequest
    );
}

#[tokio::test]
async fn whoever_watches_is_told_what_changes_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |_| {}).await;
    let mut admin = Peer::connect(&broker, 1 << 20).await;
    let mut watcher = Peer::connect(&broker, 1 << 20).await;
    let topic = admin.create("t", 1, "fsync").await;
    let watch = MetadataRequest {
        names: vec!["t".into(), "later".into()],
        watch: true,
        ..MetadataRequest::default()
    };
    let known = watcher.call(&watch, &[]).await.unwrap();
    assert_eq!(code(known.topics[1].error), ErrorCode::UnknownTopic);
    // Nothing that is watched, then three things that are.
    admin.create("other", 1, "fsync").await;
    admin.create("later", 2, "fsync").await;
    let (push, _): (MetadataPush, _) = watcher.next_message().await;
    assert!(push.version > known.version);
    let [told] = push.topics.as_slice() else { panic!("{push:?}") };
    assert_eq!((told.name.as_str(), told.partitions.len()), ("later", 2));
    assert_eq!(told.partitions[0].leader, known.brokers[0].node_id);
    let grow = AlterTopicRequest { name: "t".into(), partitions: 4, ..AlterTopicRequest::default() };
    admin.call(&grow, &[]).await.unwrap();
    let (push, _): (MetadataPush, _) = watcher.next_message().await;
    assert_eq!((push.topics[0].name.as_str(), push.topics[0].partitions.len()), ("t", 4));
    admin.call(&DeleteTopicRequest { name: "t".into(), topic_id: None }, &[]).await.unwrap();
    let (push, _): (MetadataPush, _) = watcher.next_message().await;
    assert_eq!(code(push.topics[0].error), ErrorCode::UnknownTopic);
    assert_eq!(push.topics[0].topic_id, Some(topic.into()));
}
