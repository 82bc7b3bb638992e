//! Starts that would harm a cluster are refused, and say what to do.

use std::path::Path;

use highwater_broker::config::Settings;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::messages::{BrokerIdentity, RaftRequest};

use super::support::{Place, free, kill, refusal, refused, start};

const THREE: [u32; 3] = [1, 2, 3];

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_directory_does_not_pass_as_the_voter_that_it_was() {
    let place = Place::new(3);
    let mut brokers = place.start(&THREE, &THREE).await;
    kill(&place, 2, brokers.remove(&2).unwrap()).await;
    std::fs::remove_dir_all(place.folder.path().join("2")).unwrap();
    let why = refused(place.settings(2, &THREE)).await;
    assert!(why.contains("has data directory") && why.contains("a new --node-id and --join"), "{why}");
    let joins = Settings { join: Some(place.addresses[&1].clone()), ..place.settings(2, &[]) };
    let why = refused(joins).await;
    assert!(why.contains("has data directory") && why.contains("--join"), "{why}");
    place.see_active(1, &[1, 3]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_directory_of_another_broker_is_refused() {
    let place = Place::new(3);
    let mut brokers = place.start(&THREE, &THREE).await;
    for node in [2, 3] {
        kill(&place, node, brokers.remove(&node).unwrap()).await;
    }
    let swapped = Settings { data_dir: Some(place.folder.path().join("3")), ..place.settings(2, &THREE) };
    let why = refused(swapped).await;
    assert!(
        why.contains("belongs to broker 3, and this is broker 2") && why.contains("--node-id 3"),
        "{why}"
    );
    // Nothing is lost: with their own directories they come back.
    let _back = place.start(&[2, 3], &THREE).await;
    place.see_active(1, &THREE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_directory_of_another_cluster_is_refused() {
    let (place, other) = (Place::new(3), Place::new(3));
    let mut brokers = place.start(&THREE, &THREE).await;
    let mut others = other.start(&THREE, &THREE).await;
    kill(&place, 2, brokers.remove(&2).unwrap()).await;
    kill(&other, 2, others.remove(&2).unwrap()).await;
    let foreign = Settings { data_dir: Some(other.folder.path().join("2")), ..place.settings(2, &THREE) };
    let why = refused(foreign).await;
    assert!(why.contains("belongs to cluster") && why.contains("--data-dir"), "{why}");
    place.see_active(1, &[1, 3]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_is_used_by_one_process_and_its_copy_by_none() {
    let place = Place::new(4);
    let brokers = place.start(&THREE, &THREE).await;
    let again = Settings { listen: Some(place.addresses[&4].clone()), ..place.settings(2, &[]) };
    let why = refused(again.clone()).await;
    assert!(why.contains("another process"), "{why}");
    let copied = place.folder.path().join("copy");
    copy(&place.folder.path().join("2"), &copied);
    let why = refused(Settings { data_dir: Some(copied), ..again }).await;
    assert!(why.contains("is running already at") && why.contains("copy"), "{why}");
    place.see_active(1, &THREE).await;
    drop(brokers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_to_an_existing_cluster_is_told_to_join() {
    let place = Place::new(4);
    let _brokers = place.start(&THREE, &THREE).await;
    // Named in a list of its own with brokers that are in a cluster already.
    let why = refused(place.settings(4, &[1, 2, 4])).await;
    assert!(why.contains("already") && why.contains("--join"), "{why}");
    let joined = Settings { join: Some(place.addresses[&2].clone()), ..place.settings(4, &[]) };
    let _fourth = start(joined).await.unwrap();
    place.see_active(3, &[1, 2, 3, 4]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_with_different_lists_make_no_cluster() {
    let place = Place::new(4);
    let why = tokio::select! {
        why = refused(place.settings(1, &[1, 2, 3])) => why,
        why = refused(place.settings(2, &[1, 2, 4])) => why,
    };
    assert!(why.contains("start all of them with the same list"), "{why}");
    for node in [1, 2] {
        free(&place, node).await;
    }
    // Nothing was decided: with one list they become a cluster.
    let _brokers = place.start(&THREE, &THREE).await;
    place.see_active(2, &THREE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_secret_keeps_a_broker_out() {
    let place = Place::new(2);
    let one = Settings { cluster_secret: Some("ours".to_owned()), ..place.settings(1, &[]) };
    let _first = start(one).await.unwrap();
    let with = |secret: &str| Settings {
        join: Some(place.addresses[&1].clone()),
        cluster_secret: Some(secret.to_owned()),
        ..place.settings(2, &[])
    };
    let why = refused(with("theirs")).await;
    assert!(why.contains("another cluster secret") && !why.contains("ours"), "{why}");
    let _second = start(with("ours")).await.unwrap();
    place.see_active(1, &[1, 2]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_consensus_are_for_one_directory_and_come_from_brokers() {
    let place = Place::new(1);
    let _broker = place.start(&[1], &[]).await;
    let request = RaftRequest { kind: 2, to_directory: Some(7.into()), ..RaftRequest::default() };
    let address = &place.addresses[&1];
    let code = |identity| {
        let request = request.clone();
        async move { refusal(address, identity, &request).await }
    };
    assert_eq!(code(None).await, Some(ErrorCode::NotAuthorized));
    let broker = BrokerIdentity { node_id: 2, ..BrokerIdentity::default() };
    assert_eq!(code(Some(broker)).await, Some(ErrorCode::BrokerConflict));
}
