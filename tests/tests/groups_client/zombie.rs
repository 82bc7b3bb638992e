//! A member that is paused past its session and goes on: it can neither commit nor disturb whoever has its partitions.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use highwater_client::{Admin, GroupDetails, ProducerRecord};
use highwater_tests::brokers::{Brokers, Setup};
use highwater_tests::wait;
use rustix::process::Signal;

use crate::reader::{LIMIT, Reader, SESSION, group_is};

const TOPIC: &str = "zombie";
const GROUP: &str = "living";
const PARTITIONS: u32 = 6;

fn committed(group: &GroupDetails) -> Vec<u64> {
    group.positions.iter().map(|position| position.committed.map_or(0, |offset| offset.get())).collect()
}

/// Watches positions for a while: none goes back.
async fn none_goes_back(admin: &Admin, mut last: Vec<u64>, time: Duration) -> Result<Vec<u64>> {
    let end = std::time::Instant::now() + time;
    while std::time::Instant::now() < end {
        let now = committed(&admin.describe_group(GROUP).await.context("describe the group")?);
        ensure!(now.iter().zip(&last).all(|(now, last)| now >= last), "{last:?} went back to {now:?}");
        last = now;
        wait::for_so_long(Duration::from_millis(20)).await;
    }
    Ok(last)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_paused_past_its_session_disturbs_nobody() {
    let brokers = Brokers::start(Setup::default()).await.unwrap();
    run(&brokers).await.unwrap();
}

async fn run(brokers: &Brokers) -> Result<()> {
    brokers.create_topic(TOPIC, PARTITIONS).await?;
    let client = brokers.client().await?;
    let admin = client.admin();
    let producer = client.producer().build();
    let stop = tokio_util::sync::CancellationToken::new();
    let stopped = stop.clone();
    let load = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        let mut number: u64 = 0;
        while !stopped.is_cancelled() {
            ticks.tick().await;
            let value = number.to_string();
            drop(producer.send(ProducerRecord::new(TOPIC).value(&value)).await?);
            number += 1;
        }
        producer.close().await?;
        Ok::<_, highwater_client::Error>(number)
    });
    let directory = tempfile::tempdir()?;
    let start = |number| Reader::start(brokers, (TOPIC, GROUP), number, &directory, &["--format", "json"]);
    let mut first = start(0)?;
    let group = group_is(&admin, GROUP, "the first has it all", |group| {
        group.members.len() == 1
            && committed(group).iter().filter(|offset| **offset > 20).count() == PARTITIONS as usize
    })
    .await?;
    let zombie = group.members[0].member_id.clone();
    first.signal(Signal::STOP)?;
    let paused = std::time::Instant::now();
    let before = fs::metadata(&first.output)?.len();
    let mut second = start(1)?;
    let at = committed(&group);
    let taken_over = group_is(&admin, GROUP, "the second has it all", |group| {
        let has_all = |member: &highwater_client::GroupMemberDetails| {
            member.member_id != zombie && member.assigned.len() == PARTITIONS as usize
        };
        group.members.len() == 1
            && has_all(&group.members[0])
            && committed(group).iter().zip(&at).all(|(now, at)| now > at)
    })
    .await?;
    let took = paused.elapsed();
    println!(
        "paused member taken for dead and everything committed anew after {took:.2?} (session {SESSION:?})"
    );
    ensure!(took < SESSION + Duration::from_secs(5), "redelivery took {took:?}");
    // It goes on where it stood, with what it had in memory, and what it would have committed.
    first.signal(Signal::CONT)?;
    let last = none_goes_back(&admin, committed(&taken_over), Duration::from_secs(3)).await?;
    let shared = group_is(&admin, GROUP, "they share", |group| {
        group.members.len() == 2 && group.members.iter().all(|member| member.assigned.len() == 3)
    })
    .await?;
    ensure!(shared.members.iter().all(|member| member.member_id != zombie), "it is another member now");
    none_goes_back(&admin, last, Duration::from_secs(2)).await?;
    stop.cancel();
    let sent = wait::within("the producer ends", LIMIT, load).await???;
    group_is(&admin, GROUP, "everything is consumed", |group| {
        group.positions.iter().all(|position| position.lag == Some(0))
    })
    .await?;
    first.stop()?;
    second.stop()?;
    let more = fs::metadata(&first.output)?.len() - before;
    println!(
        "{sent} records; the zombie printed {more} bytes after its pause, most of them as a member again"
    );
    brokers.check_no_errors(&[])
}
