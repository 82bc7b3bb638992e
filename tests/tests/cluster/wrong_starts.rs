//! Brokers started in a wrong way: with a wiped directory, with another's, with one of another cluster, twice, with an
//! even number of voters, with different lists. Each is refused and told the way out, and nothing is lost.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use highwater_tests::brokers::{Brokers, Setup};
use highwater_tests::cluster::{BrokerProcess, Options, free_port};
use highwater_tests::wait;
use highwater_tests::workload::{self, Steady, SteadyOptions};

const TOPIC: &str = "wrong-starts";
const PARTITIONS: u32 = 3;
const LIMIT: Duration = Duration::from_secs(60);

/// Starts a broker that must not come up: it ends by itself, with a failure, and what it says has all these words.
fn refused(process: &mut BrokerProcess, what: &str, words: &[&str]) -> Result<()> {
    let logged = process.log().map_or(0, |log| log.len());
    process.start_again_unawaited()?;
    let status = process.await_end(LIMIT).with_context(|| format!("{what}: not refused"))?;
    let log = process.log()?;
    let said = log.get(logged..).unwrap_or_default();
    ensure!(!status.success(), "{what}: it ended with {status}; it said:\n{said}");
    for word in words {
        ensure!(said.contains(word), "{what}: the refusal does not say '{word}':\n{said}");
    }
    let last = said.lines().last().unwrap_or_default();
    println!("{what}: {last}");
    Ok(())
}

/// Copies a directory with all that is in it.
fn copy_all(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_all(&entry.path(), &target)?;
        } else {
            // A file of a running broker may be gone by now.
            match fs::copy(entry.path(), target) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Waits until everything is served, and all replicas are in sync.
async fn well(brokers: &Brokers, load: &Steady, after: &str) -> Result<()> {
    let served = load.served_since(&load.partitions(), Instant::now(), LIMIT).await;
    served.with_context(|| format!("after {after}; failed sends: {:?}", load.failures()))?;
    brokers.in_sync(TOPIC).await.map(drop).with_context(|| format!("after {after}"))
}

async fn wiped(brokers: &mut Brokers, load: &Steady) -> Result<()> {
    let process = brokers.node(2)?;
    process.kill9()?;
    let data = process.data_directory().to_owned();
    let aside = data.with_extension("aside");
    fs::rename(&data, &aside)?;
    refused(process, "a wiped directory", &["directory", "--join"])?;
    load.served_since(&load.partitions(), Instant::now(), LIMIT).await?;
    fs::remove_dir_all(&data)?;
    fs::rename(&aside, &data)?;
    brokers.node(2)?.start_again()?;
    well(brokers, load, "the directory is back").await
}

async fn swapped(brokers: &mut Brokers, load: &Steady) -> Result<()> {
    let (two, three) =
        (brokers.node(2)?.data_directory().to_owned(), brokers.node(3)?.data_directory().to_owned());
    let aside = two.with_extension("aside");
    brokers.node(2)?.kill9()?;
    brokers.node(3)?.kill9()?;
    let swap = || -> Result<()> {
        fs::rename(&two, &aside)?;
        fs::rename(&three, &two)?;
        Ok(fs::rename(&aside, &three)?)
    };
    swap()?;
    refused(brokers.node(2)?, "the directory of another", &["directory", "3"])?;
    refused(brokers.node(3)?, "the directory of another", &["directory", "2"])?;
    swap()?;
    brokers.start_all()?;
    well(brokers, load, "the directories are where they belong").await
}

async fn foreign(brokers: &mut Brokers, load: &Steady) -> Result<()> {
    let mut other = BrokerProcess::start(Options { node_id: 3, ..Options::default() })?;
    other.terminate()?;
    let process = brokers.node(3)?;
    process.kill9()?;
    let data = process.data_directory().to_owned();
    let aside = data.with_extension("aside");
    fs::rename(&data, &aside)?;
    copy_all(other.data_directory(), &data)?;
    refused(process, "a directory of another cluster", &["cluster"])?;
    fs::remove_dir_all(&data)?;
    fs::rename(&aside, &data)?;
    brokers.node(3)?.start_again()?;
    well(brokers, load, "the directory of this cluster is back").await
}

async fn twice(brokers: &mut Brokers, load: &Steady) -> Result<()> {
    let copy = tempfile::tempdir()?;
    let data = copy.path().join("data");
    copy_all(brokers.node(2)?.data_directory(), &data)?;
    let mut second = BrokerProcess::new(Options {
        node_id: 2,
        data_directory: Some(data),
        arguments: vec!["--voters".to_owned(), brokers.voters()],
        keeps_port: true,
        ..Options::default()
    })?;
    refused(&mut second, "a second broker 2 on a copy of its directory", &["2", "running"])?;
    ensure!(brokers.node(2)?.is_running()?, "the first one goes on");
    well(brokers, load, "the second one was refused").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_directories_are_refused_and_nothing_is_lost() {
    let mut brokers = Brokers::start(Setup::default()).await.unwrap();
    let run = async |brokers: &mut Brokers| {
        brokers.create_topic(TOPIC, PARTITIONS).await?;
        let client = brokers.client().await?;
        let load = Steady::start(&brokers.bootstrap(), SteadyOptions::new(TOPIC, PARTITIONS)).await?;
        well(brokers, &load, "the start").await?;
        wiped(brokers, &load).await?;
        swapped(brokers, &load).await?;
        foreign(brokers, &load).await?;
        let summary = workload::judge(&client, TOPIC, load.stop().await?, BTreeMap::new()).await?;
        println!("{summary:?}");
        ensure!(summary.acknowledged > 0 && summary.refused == 0, "{summary:?}");
        Ok(())
    };
    run(&mut brokers).await.unwrap_or_else(|error| panic!("{error:?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_start_on_a_copy_is_refused_and_nothing_is_lost() {
    let mut brokers = Brokers::start(Setup::default()).await.unwrap();
    let run = async |brokers: &mut Brokers| {
        brokers.create_topic(TOPIC, PARTITIONS).await?;
        let client = brokers.client().await?;
        let load = Steady::start(&brokers.bootstrap(), SteadyOptions::new(TOPIC, PARTITIONS)).await?;
        well(brokers, &load, "the start").await?;
        twice(brokers, &load).await?;
        let summary = workload::judge(&client, TOPIC, load.stop().await?, BTreeMap::new()).await?;
        ensure!(summary.acknowledged > 0 && summary.refused == 0, "{summary:?}");
        Ok(())
    };
    run(&mut brokers).await.unwrap_or_else(|error| panic!("{error:?}"));
}

#[test]
fn an_even_number_of_voters_is_refused() {
    let voters = format!("1@127.0.0.1:{},2@127.0.0.1:{}", free_port().unwrap(), free_port().unwrap());
    let arguments = vec!["--voters".to_owned(), voters];
    let mut process = BrokerProcess::new(Options { arguments, ..Options::default() }).unwrap();
    refused(&mut process, "two voters", &["even number", "--join"]).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn different_lists_do_not_become_a_cluster_and_are_told_so() {
    let mut brokers = Brokers::unstarted(Setup::default(), None).await.unwrap();
    let run = async |brokers: &mut Brokers| {
        let list = brokers.voters();
        let third = brokers.address(3)?;
        let other = list.replace(&format!("3@{third}"), &format!("4@127.0.0.1:{}", free_port()?));
        for node in [1, 2] {
            brokers.node(node)?.set_arguments(vec!["--voters".to_owned(), other.clone()]);
        }
        for node in [1, 2, 3] {
            brokers.node(node)?.start_again_unawaited()?;
        }
        // Whether it ends or waits for the others to be started anew: it says what is wrong.
        wait::until("broker 3 says that the lists differ", LIMIT, || {
            brokers.log(3).ok()?.contains("--voters").then_some(())
        })?;
        let views = brokers.view(1, None).await;
        ensure!(
            views.is_none_or(|view| view.controller.is_none()),
            "a cluster came about of different lists"
        );
        for node in [1, 2, 3] {
            brokers.node(node)?.kill9()?;
            brokers.node(node)?.set_arguments(vec!["--voters".to_owned(), list.clone()]);
        }
        brokers.start_all()?;
        brokers.formed().await?;
        brokers.create_topic(TOPIC, 1).await
    };
    run(&mut brokers).await.unwrap_or_else(|error| panic!("{error:?}"));
}
