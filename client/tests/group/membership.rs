//! Joining, being given and giving up partitions, being fenced, leaving.

use std::time::Duration;

use highwater_client::{ErrorKind, GroupEvent, LossCause};
use highwater_protocol::error_code::ErrorCode;

use super::coordinator::World;
use super::scripted::TOPIC;
use super::{P0, P1, event, nothing, partitions, record};

#[tokio::test(start_paused = true)]
async fn a_member_says_who_it_is_and_begins_where_the_group_was() {
    let world = World::new(2, &[0, 1]).await;
    world.with(|state| state.committed.insert(1, (7, String::from("of mine"))));
    let builder = world.builder().rack("eu-1").assignor("range").instance("worker-1").take_over();
    let mut consumer = builder.session_timeout(Duration::from_secs(9)).build().await.unwrap();
    let GroupEvent::Assigned(assigned) = event(&mut consumer).await else { panic!("not assigned") };
    let seen: Vec<_> = assigned.iter().map(|one| (one.position.get(), one.metadata.clone())).collect();
    assert_eq!(seen, [(7, Some(String::from("of mine"))), (0, None)], "those with a position first");
    assert_eq!(assigned[0].partition.to_string(), format!("{TOPIC}/1"));
    world.until("subscriptions", |state| state.subscribes.len() == 2).await;
    world.with(|state| {
        let mut subscribes = state.subscribes.clone();
        subscribes.sort_unstable();
        assert_eq!(subscribes, [(0, 0), (1, 7)]);
        let joining = &state.heartbeats[0];
        assert_eq!((joining.group.as_str(), joining.generation, joining.member_id.len()), ("billing", 0, 32));
        assert_eq!((joining.session_timeout_ms, joining.rebalance_timeout_ms), (9000, 60_000));
        assert_eq!((joining.rack.as_deref(), joining.assignor.as_deref()), (Some("eu-1"), Some("range")));
        assert_eq!((joining.instance_id.as_deref(), joining.take_over), (Some("worker-1"), true));
        assert_eq!(joining.subscription.as_ref().unwrap().topics, [TOPIC]);
    });
    world.until("three heartbeats", |state| state.heartbeats.len() == 3).await;
    world.with(|state| {
        let next = &state.heartbeats[1];
        assert!(next.subscription.is_some() && next.generation == 1 && !next.take_over);
        let further = &state.heartbeats[2];
        assert!(further.subscription.is_none() && further.owned.is_none(), "nothing has changed");
        assert_eq!(state.owned(), Some(vec![0, 1]));
        assert_eq!(next.member_id, state.heartbeats[0].member_id);
    });
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_moves_is_committed_before_it_is_given_up_and_the_others_flow() {
    let world = World::new(2, &[0, 1]).await;
    let mut consumer = world.builder().commit_every(Duration::from_secs(3600)).build().await.unwrap();
    assert_eq!(partitions(&event(&mut consumer).await), [0, 1]);
    world.push(0, 0, &["a", "b", "c"]).await;
    assert_eq!(record(&mut consumer).await, (0, 0, String::from("a")));
    assert_eq!(record(&mut consumer).await, (0, 1, String::from("b")));
    world.with(|state| state.assign(&[1]));
    world.until("the change was told", |state| state.heartbeats.len() >= 2).await;
    world.push(1, 0, &["x"]).await;
    // The application has "b" in hand: nothing is given up before it asks for more.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(world.with(|state| state.commits.is_empty()));
    assert_eq!(partitions(&event(&mut consumer).await), [0]);
    // What was received of it does not come any more; what was revoked is still the consumer's to commit.
    assert_eq!(consumer.position(TOPIC, P0).unwrap().get(), 2);
    assert_eq!(record(&mut consumer).await, (1, 0, String::from("x")));
    world.until("it is given up", |state| state.owned() == Some(vec![1])).await;
    world.with(|state| {
        let told = state.story.iter().position(|line| line.ends_with("Some([1])")).unwrap();
        let commit = state.story.iter().position(|line| line.starts_with("commit {0: 2")).unwrap();
        assert!(commit < told, "{:#?}", state.story);
        let of_1 = state.subscribes.iter().filter(|(partition, _)| *partition == 1).count();
        assert_eq!((of_1, state.unsubscribes), (1, 1), "what stays is not touched");
    });
    assert_eq!(consumer.position(TOPIC, P0), None);
    world.push(1, 1, &["y"]).await;
    assert_eq!(record(&mut consumer).await, (1, 1, String::from("y")));
}

#[tokio::test(start_paused = true)]
async fn an_application_that_does_not_come_back_in_time_holds_up_one_partition_only() {
    let world = World::new(2, &[0, 1]).await;
    let rebalance = Duration::from_secs(20);
    let mut consumer = world.builder().rebalance_timeout(rebalance).build().await.unwrap();
    event(&mut consumer).await;
    world.push(0, 0, &["a", "b", "c"]).await;
    assert_eq!(record(&mut consumer).await.1, 0);
    assert_eq!(record(&mut consumer).await.1, 1);
    world.with(|state| state.assign(&[1]));
    world.until("it is given up", |state| state.owned() == Some(vec![1])).await;
    assert_eq!(world.with(|state| state.committed(0)), Some(1), "not what it has in hand");
    // It comes back, and is told; a commit is too late.
    let revoked = event(&mut consumer).await;
    assert_eq!(partitions(&revoked), [0]);
    world.push(1, 0, &["x"]).await;
    assert_eq!(record(&mut consumer).await.0, 1);
}

#[tokio::test(start_paused = true)]
async fn a_fenced_member_gives_nothing_out_any_more_and_joins_under_another_id() {
    let world = World::new(1, &[0]).await;
    let mut consumer = world.builder().commit_every(Duration::from_secs(3600)).build().await.unwrap();
    event(&mut consumer).await;
    world.push(0, 0, &["a", "b", "c"]).await;
    assert_eq!(record(&mut consumer).await.1, 0);
    world.with(|state| {
        state.heartbeat_errors.push_back(ErrorCode::UnknownMember);
        state.committed.insert(0, (2, String::new()));
    });
    world
        .until("it joins again", |state| {
            state.heartbeats.iter().filter(|heartbeat| heartbeat.generation == 0).count() == 2
        })
        .await;
    let GroupEvent::Lost { partitions: lost, cause } = event(&mut consumer).await else { panic!("not lost") };
    assert_eq!((lost[0].partition, cause), (P0, LossCause::SessionTimeout));
    assert_eq!(partitions(&event(&mut consumer).await), [0]);
    world.until("it is subscribed", |state| state.subscribes.len() == 2).await;
    world.with(|state| {
        assert_eq!(state.subscribes[1], (0, 2), "where the other one was");
        let ids: std::collections::BTreeSet<_> =
            state.heartbeats.iter().map(|heartbeat| &heartbeat.member_id).collect();
        assert_eq!(ids.len(), 2);
    });
    world.push(0, 2, &["c"]).await;
    assert_eq!(record(&mut consumer).await.1, 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_given_out_beyond_the_session_without_word_from_the_coordinator() {
    let world = World::new(1, &[0]).await;
    let mut consumer = world.builder().build().await.unwrap();
    event(&mut consumer).await;
    world.push(0, 0, &["a", "b", "c", "d"]).await;
    assert_eq!(record(&mut consumer).await.1, 0);
    world.with(|state| state.silent = true);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(record(&mut consumer).await.1, 1, "a moment without it is nothing");
    tokio::time::sleep(Duration::from_secs(6)).await;
    // As after a long pause of the whole process: what it has in memory may be somebody else's.
    nothing(&mut consumer, Duration::from_secs(60)).await;
    world.with(|state| state.silent = false);
    assert_eq!(
        record(&mut consumer).await.1,
        2,
        "it was still its own: nothing is lost and nothing comes twice"
    );
    world.with(|state| state.silent = true);
    tokio::time::sleep(Duration::from_secs(12)).await;
    world.with(|state| {
        state.silent = false;
        state.heartbeat_errors.push_back(ErrorCode::FencedGeneration);
    });
    let lost = event(&mut consumer).await;
    assert!(matches!(lost, GroupEvent::Lost { .. }), "not a record of another one's: {lost:?}");
}

#[tokio::test(start_paused = true)]
async fn an_application_that_is_away_for_too_long_leaves_and_comes_back() {
    let world = World::new(1, &[0]).await;
    let builder = world.builder().max_poll_interval(Duration::from_secs(30));
    let mut consumer = builder.build().await.unwrap();
    event(&mut consumer).await;
    // Waiting is not being away.
    nothing(&mut consumer, Duration::from_secs(120)).await;
    world.push(0, 0, &["a", "b"]).await;
    record(&mut consumer).await;
    record(&mut consumer).await;
    let busy = tokio::time::Instant::now();
    world.until("it leaves", |state| state.heartbeats.iter().any(|heartbeat| heartbeat.action == 1)).await;
    assert!(
        (Duration::from_secs(30)..Duration::from_secs(33)).contains(&busy.elapsed()),
        "{:?}",
        busy.elapsed()
    );
    assert_eq!(world.with(|state| state.committed(0)), Some(1), "what was finished is committed, not more");
    let count = world.with(|state| state.heartbeats.len());
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(world.with(|state| state.heartbeats.len()), count, "it stays away");
    let GroupEvent::Lost { cause, .. } = event(&mut consumer).await else { panic!("not told") };
    assert_eq!(cause, LossCause::ApplicationAway);
    assert_eq!(partitions(&event(&mut consumer).await), [0]);
    world.until("it reads again", |state| state.subscribes.len() == 2).await;
    assert_eq!(world.with(|state| state.subscribes[1]), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_moves_or_loads_is_found_and_waited_for() {
    let world = World::new(1, &[0]).await;
    world.with(|state| {
        let errors = [ErrorCode::CoordinatorLoading, ErrorCode::NotCoordinator, ErrorCode::NoCoordinator];
        state.heartbeat_errors.extend(errors);
    });
    let mut consumer = world.builder().build().await.unwrap();
    event(&mut consumer).await;
    assert_eq!(world.with(|state| state.lookups), 2, "again only after it was elsewhere");
    world.push(0, 0, &["a"]).await;
    record(&mut consumer).await;
    world.with(|state| state.heartbeat_errors.push_back(ErrorCode::NotCoordinator));
    world.until("it is looked for", |state| state.lookups == 3).await;
    nothing(&mut consumer, Duration::from_secs(5)).await;
    assert_eq!(world.with(|state| state.subscribes.len()), 1, "reading does not depend on the coordinator");
}

#[tokio::test(start_paused = true)]
async fn closing_commits_and_leaves_and_so_does_dropping() {
    for way in ["close", "restart", "drop"] {
        let world = World::new(1, &[0]).await;
        let builder = world.builder().commit_every(Duration::from_secs(3600)).instance("i");
        let mut consumer = builder.build().await.unwrap();
        event(&mut consumer).await;
        world.push(0, 0, &["a", "b", "c"]).await;
        record(&mut consumer).await;
        record(&mut consumer).await;
        match way {
            "close" => consumer.close().await.unwrap(),
            "restart" => consumer.close_for_restart().await.unwrap(),
            _ => drop(consumer),
        }
        world.until("it leaves", |state| state.heartbeats.last().unwrap().action != 0).await;
        world.with(|state| {
            let finished = if way == "drop" { 1 } else { 2 };
            assert_eq!(state.committed(0), Some(finished), "{way}");
            let action = if way == "restart" { 2 } else { 1 };
            assert_eq!((state.heartbeats.last().unwrap().action, state.owned()), (action, Some(vec![])));
        });
        let count = world.with(|state| state.heartbeats.len());
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(world.with(|state| state.heartbeats.len()), count, "nothing after {way}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_helped_is_told_and_names_the_group() {
    let world = World::new(1, &[0]).await;
    for wrong in [
        world.client.group_consumer("").topics([TOPIC]),
        world.client.group_consumer("a/b").topics([TOPIC]),
        world.client.group_consumer("billing"),
        world.builder().instance(""),
        world.builder().pattern("x".repeat(1025)),
        world.builder().topics((0..1001).map(|number| number.to_string())),
        world.builder().session_timeout(Duration::ZERO),
    ] {
        assert_eq!(wrong.build().await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    assert!(world.with(|state| state.heartbeats.is_empty()), "nobody was asked");
    world.with(|state| state.heartbeat_errors.push_back(ErrorCode::GroupFull));
    let error = world.builder().build().await.unwrap_err();
    assert_eq!((error.kind(), error.group()), (ErrorKind::Conflict, Some("billing")));
    let mut consumer = world.builder().instance("i").build().await.unwrap();
    assert_eq!(partitions(&event(&mut consumer).await), [0]);
    world.with(|state| state.heartbeat_errors.push_back(ErrorCode::InstanceInUse));
    assert!(matches!(event(&mut consumer).await, GroupEvent::Lost { cause: LossCause::Ended, .. }));
    let error = consumer.next_event().await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InstanceInUse));
    assert!(consumer.next_event().await.is_none());
    assert_eq!(consumer.commit().await.unwrap_err().kind(), ErrorKind::Closed);
    let error = consumer.pause(TOPIC, P1).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("group billing, topic {TOPIC}, partition 1: the partition is not this consumer's")
    );
    consumer.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_group_without_a_coordinator_is_waited_for_as_long_as_a_request_may_take() {
    let world = World::new(1, &[0]).await;
    world
        .with(|state| state.heartbeat_errors.extend(std::iter::repeat_n(ErrorCode::CoordinatorLoading, 500)));
    let begun = tokio::time::Instant::now();
    let error = world.builder().build().await.unwrap_err();
    assert_eq!((error.kind(), error.group()), (ErrorKind::TimedOut, Some("billing")));
    assert_eq!(begun.elapsed(), Duration::from_secs(10));
}
