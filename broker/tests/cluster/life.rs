//! A cluster comes to be, loses its controller, loses everybody, and grows.

use std::time::Duration;

use highwater_broker::config::{Config, Settings, Span};
use highwater_broker::env::Env;
use highwater_broker::{Broker, config};
use highwater_broker_core::log::envelope;
use highwater_protocol::messages::{CreateTopicRequest, DeleteTopicRequest, MetadataRequest};

use super::support::{Place, ask, free, kill, refusal_text, refused, start, until};

const THREE: [u32; 3] = [1, 2, 3];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_voters_become_one_cluster_whoever_is_started_last() {
    let place = Place::new(3);
    let config = |node| Config::from_settings(place.settings(node, &THREE)).unwrap();
    let first = Box::pin(Broker::launch(config(1), Env::real())).await.unwrap();
    let second = Box::pin(Broker::launch(config(2), Env::real())).await.unwrap();
    // Two of three are a majority, and still there is no cluster before all have answered.
    let waited = tokio::time::timeout(Duration::from_millis(700), first.ready()).await;
    assert!(waited.is_err(), "a cluster without its third voter");
    // Whoever asks meanwhile is told what is waited for.
    let missing = &place.addresses[&3];
    until("a client is told which voter is missing", || async {
        let text = refusal_text(&place.addresses[&1], &MetadataRequest::default()).await?;
        (text.contains("voter 3 does not answer") && text.contains(missing)).then_some(())
    })
    .await;
    let third = Box::pin(Broker::launch(config(3), Env::real())).await.unwrap();
    for broker in [&first, &second, &third] {
        broker.ready().await.unwrap();
    }
    let mut clusters = Vec::new();
    for node in THREE {
        let seen = place.see_active(node, &THREE).await;
        assert_eq!(seen.voters, THREE);
        clusters.push((seen.cluster_id, seen.controller));
    }
    assert!(clusters.iter().all(|one| *one == clusters[0]), "{clusters:?}");
    // In order: nobody is missed afterwards.
    for broker in [first, second, third] {
        broker.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_controller_is_fenced_by_the_next_one_and_comes_back() {
    let place = Place::new(3);
    let mut brokers = place.start(&THREE, &THREE).await;
    let dead = place.see_active(1, &THREE).await.controller;
    kill(&place, dead, brokers.remove(&dead).unwrap()).await;
    let alive: Vec<u32> = THREE.into_iter().filter(|node| *node != dead).collect();
    for node in &alive {
        place.see_active(*node, &alive).await;
    }
    // Changes go through whichever broker is asked.
    for (node, name) in alive.iter().zip(["one", "two"]) {
        let request =
            CreateTopicRequest { name: name.to_owned(), replication: 1, ..CreateTopicRequest::default() };
        let made = until("a topic is made", || ask(&place.addresses[node], &request)).await;
        assert!(made.topic_id.is_some());
    }
    let before = place.describe(alive[0]).await.unwrap();
    brokers.extend(place.start(&[dead], &THREE).await);
    let after = place.see_active(dead, &THREE).await;
    let epoch = |reply: &highwater_protocol::messages::DescribeClusterReply| {
        reply.brokers.iter().find(|broker| broker.node_id == dead).unwrap().broker_epoch
    };
    assert!(epoch(&after) > epoch(&before), "every registration has an epoch of its own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_was_killed_as_a_whole_is_the_same_one_afterwards() {
    let place = Place::new(3);
    let brokers = place.start(&THREE, &THREE).await;
    let before = place.see_active(1, &THREE).await;
    let request =
        CreateTopicRequest { name: "kept".to_owned(), replication: 1, ..CreateTopicRequest::default() };
    let made = until("a topic is made", || ask(&place.addresses[&2], &request)).await;
    for (node, broker) in brokers {
        kill(&place, node, broker).await;
    }
    let _brokers = place.start(&THREE, &THREE).await;
    for node in THREE {
        let seen = place.see_active(node, &THREE).await;
        assert_eq!(seen.cluster_id, before.cluster_id);
        let asked = MetadataRequest { names: vec!["kept".to_owned()], ..MetadataRequest::default() };
        let reply = ask(&place.addresses[&node], &asked).await.unwrap();
        assert_eq!(reply.topics[0].topic_id, made.topic_id, "broker {node}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_ends_while_partitions_are_opened_lets_go_of_them() {
    let place = Place::new(1);
    for round in 1..=5 {
        let mut brokers = place.start(&[1], &[]).await;
        let (address, name) = (place.addresses[&1].clone(), format!("topic-{round}"));
        let request =
            CreateTopicRequest { name: name.clone(), partitions: 100, ..CreateTopicRequest::default() };
        let making = tokio::spawn({
            let address = address.clone();
            async move { ask(&address, &request).await }
        });
        let asked = MetadataRequest { names: vec![name], ..MetadataRequest::default() };
        until("the topic is decided", || async {
            let reply = ask(&address, &asked).await?;
            (reply.topics[0].partitions.len() == 100).then_some(())
        })
        .await;
        let (node, broker) = brokers.pop_first().unwrap();
        kill(&place, node, broker).await;
        let _made_or_cut_off = making.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_grows_to_three_voters_and_a_fourth_broker_learns() {
    let place = Place::new(4);
    let first = place.start(&[1], &[]).await;
    let joins = |node| Settings { join: Some(place.addresses[&1].clone()), ..place.settings(node, &[]) };
    let second = start(joins(2)).await.unwrap();
    assert_eq!(place.see_active(2, &[1, 2]).await.voters, [1], "never an even number");
    let third = start(joins(3)).await.unwrap();
    place.see("three vote", 3, |reply| (reply.voters == THREE).then_some(())).await;
    let fourth = start(joins(4)).await.unwrap();
    assert_eq!(place.see_active(4, &[1, 2, 3, 4]).await.voters, THREE);
    drop((first, second, third, fourth));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_cut_off_is_fenced_when_its_lease_ends() {
    let place = Place::new(3);
    let short = |node| Settings { lease: Some(Span(Duration::from_secs(1))), ..place.settings(node, &THREE) };
    let starting: Vec<_> = THREE.map(|node| tokio::spawn(start(short(node)))).into();
    let mut brokers = Vec::new();
    for broker in starting {
        brokers.push(broker.await.unwrap().unwrap());
    }
    let controller = place.see_active(1, &THREE).await.controller;
    let lost = THREE.into_iter().find(|node| *node != controller).unwrap();
    let alive: Vec<u32> = THREE.into_iter().filter(|node| *node != lost).collect();
    // Its address goes on to be listened at, by somebody who never answers: nothing says that the process is dead.
    kill(&place, lost, brokers.remove(lost as usize - 1)).await;
    let _silent =
        until("the address is free", || async { std::net::TcpListener::bind(&place.addresses[&lost]).ok() })
            .await;
    place.see_active(controller, &alive).await;
}

/// The settings have a place for everything that a cluster needs.
#[test]
fn a_list_of_voters_has_to_name_the_broker_itself() {
    let place = Place::new(3);
    let settings = Settings { node_id: Some(3), ..place.settings(1, &[1]) };
    let refused = config::Config::from_settings(settings).unwrap_err().to_string();
    assert!(refused.contains("broker 3 is not in the list"), "{refused}");
}

/// The file with the topics of a broker on its own, as versions before this one wrote it.
fn old_topics(cluster_id: u128, topic_id: u128, name: &str) -> Vec<u8> {
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text.as_bytes());
    };
    let mut out = Vec::new();
    out.extend(1u64.to_le_bytes());
    out.extend(cluster_id.to_be_bytes());
    out.extend(1u32.to_le_bytes());
    out.extend(topic_id.to_be_bytes());
    text(&mut out, name);
    out.extend(1u32.to_le_bytes());
    out.extend(0i64.to_le_bytes());
    out.extend(0u32.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    text(&mut out, "fsync");
    envelope::wrap(*b"HWTI", 1, &out)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_topics_of_a_broker_from_before_are_taken_over_once() {
    let place = Place::new(3);
    let state = place.folder.path().join("1/state");
    std::fs::create_dir_all(&state).unwrap();
    std::fs::write(state.join("topics"), old_topics(0xc1, 0x70, "old")).unwrap();
    // As one of three the broker would have to share what it alone has.
    let why = refused(place.settings(1, &THREE)).await;
    assert!(why.contains("start it once without --voters and --join"), "{why}");
    assert!(state.join("topics").exists(), "nothing is touched by a start that is refused");
    free(&place, 1).await;
    let ask_old = MetadataRequest { names: vec!["old".to_owned()], ..MetadataRequest::default() };
    for start in 1..=2 {
        let mut brokers = place.start(&[1], &[]).await;
        assert_eq!(place.see_active(1, &[1]).await.cluster_id.map(u128::from), Some(0xc1));
        let reply = ask(&place.addresses[&1], &ask_old).await.unwrap();
        let found = if start == 1 { Some(0x70) } else { None };
        assert_eq!(reply.topics[0].topic_id.map(u128::from), found, "start {start}");
        assert!(state.join("topics-imported").exists() && !state.join("topics").exists());
        if start == 1 {
            let delete = DeleteTopicRequest { name: "old".to_owned(), ..DeleteTopicRequest::default() };
            assert!(ask(&place.addresses[&1], &delete).await.is_some());
        }
        kill(&place, 1, brokers.remove(&1).unwrap()).await;
    }
}
