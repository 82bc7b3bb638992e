//! `highwater quickstart`: a broker, real input, a crash in the middle, and the proof that nothing was lost.

mod child;
mod flow;
mod ledger;
mod source;
mod telemetry;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use highwater_client::{Client, ErrorKind, NewTopic, Producer, StartAt};
use serde_json::json;
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Global, Output, QuickstartArgs};
use crate::connect::{connect_to, stage_name};
use crate::output::{self, Answer, OutputClosed};
use child::{Broker, Launcher};
use flow::Flow;
use ledger::{Ledger, Verified};
use source::Source;

/// How long records flow before the broker is killed, and again after it is back.
const BEFORE_KILL: Duration = Duration::from_secs(5);
const AFTER_KILL: Duration = Duration::from_secs(5);
/// How long one thing may take that should take moments: connecting, a topic, the last acknowledgements.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long all of it may take with `--exit`.
const TOTAL: Duration = Duration::from_secs(120);
/// How often figures are shown, without a terminal and with one.
const SHOW_EVERY: Duration = Duration::from_secs(1);
/// How often conditions are looked at.
const LOOK: Duration = Duration::from_millis(5);

const TELEMETRY_TOPIC: &str = "telemetry";
const FILE_TOPIC: &str = "lines";

/// Runs the command. Whatever happens, the broker and the temporary directory are gone when it returns.
pub(crate) async fn run(global: &Global, args: QuickstartArgs) -> anyhow::Result<Answer> {
    let mut terminated = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let exit = args.exit;
    let place = Place::new(args.dir.as_deref())?;
    let launcher = Launcher::new(place.path())?;
    let mut tour = Tour {
        say: global.output == Output::Table,
        launcher,
        source: match &args.file {
            Some(path) => Some(Source::file(path)?),
            None => Some(Source::telemetry()?),
        },
        is_file: args.file.is_some(),
        broker: None,
        began: Instant::now(),
    };
    let result = tokio::select! {
        result = tour.run(exit) => result,
        () = tokio::time::sleep(TOTAL), if exit => Err(anyhow::anyhow!("not done after {TOTAL:?}")),
        _ = tokio::signal::ctrl_c() => Ok(None),
        _ = terminated.recv() => Ok(None),
    };
    let stopped = match tour.broker.take() {
        Some(broker) => broker.stop().await,
        None => Ok(()),
    };
    if let Err(error) = &result
        && !error.is::<OutputClosed>()
    {
        output::note(format!("The broker's log ends in:\n{}\n", tour.launcher.log_end()));
    }
    let verified = result?;
    stopped?;
    if let Some(kept) = place.kept() {
        tour.line(&format!("\nThe broker has ended; its data is in {}", kept.display()))?;
    } else {
        tour.line("\nThe broker has ended and its temporary directory is gone.")?;
    }
    match verified {
        // Interrupted before everything was verified: with --exit that was the question.
        None if exit => Ok(Answer::No),
        _ => Ok(Answer::Yes),
    }
}

/// Where the broker keeps its data.
enum Place {
    Temporary(TempDir),
    Given(PathBuf),
}

impl Place {
    fn new(given: Option<&Path>) -> anyhow::Result<Self> {
        match given {
            None => {
                let directory = tempfile::Builder::new().prefix("highwater-quickstart-").tempdir();
                Ok(Self::Temporary(
                    directory.context("make a temporary directory; --dir DIR names another place")?,
                ))
            }
            Some(path) => {
                std::fs::create_dir_all(path)
                    .with_context(|| format!("make directory {}", path.display()))?;
                // The broker's working directory is another one some day.
                let path =
                    path.canonicalize().with_context(|| format!("find directory {}", path.display()))?;
                Ok(Self::Given(path))
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Temporary(directory) => directory.path(),
            Self::Given(path) => path,
        }
    }

    fn kept(&self) -> Option<&Path> {
        match self {
            Self::Temporary(_) => None,
            Self::Given(path) => Some(path),
        }
    }
}

/// What happened, for the last lines.
struct Facts {
    verified: Verified,
    failed: u64,
    outage: Option<Duration>,
    seconds: f64,
}

struct Tour {
    /// Whether to talk to people, rather than print one document at the end.
    say: bool,
    launcher: Launcher,
    /// Taken when records begin to flow.
    source: Option<Source>,
    is_file: bool,
    broker: Option<Broker>,
    began: Instant,
}

impl Tour {
    fn line(&self, text: &str) -> anyhow::Result<()> {
        if self.say { output::line(text) } else { Ok(()) }
    }

    async fn run(&mut self, exit: bool) -> anyhow::Result<Option<Verified>> {
        self.line("Highwater quickstart: nothing below the high watermark is ever lost. Watch it try.\n")?;
        let broker = self.launcher.start().await?;
        self.line(&format!(
            "1  A broker runs at {} (process {}), ready after {} ms.",
            broker.addresses.listen,
            broker.pid(),
            broker.ready_after.as_millis()
        ))?;
        let address = broker.addresses.listen.clone();
        self.broker = Some(broker);
        let client = connect_to(&[address], PATIENCE).await?;
        let flow = self.prepare(&client).await?;
        let consumer = client.consumer(&flow.topic).from(StartAt::Latest).build().await?;
        let producer = client.producer().linger(Duration::ZERO).delivery_timeout(PATIENCE).build();
        let mut source = self.source.take().context("the source is in use")?;
        let facts = tokio::select! {
            facts = self.direct(&client, &producer, &flow) => facts?,
            result = async { flow.consume(&client, consumer).await } => {
                result?;
                anyhow::bail!("the consumer ended");
            }
            result = async {
                flow.produce(&producer, &mut source).await?;
                // The director sees that it is done.
                std::future::pending::<anyhow::Result<()>>().await
            } => {
                result?;
                anyhow::bail!("the producer ended");
            }
        };
        self.report(&flow, &facts)?;
        if !exit {
            self.stay(&client, &producer, &flow.topic).await?;
        }
        Ok(Some(facts.verified))
    }

    /// Makes the topic, or finds it from an earlier run.
    async fn prepare(&self, client: &Client) -> anyhow::Result<Flow> {
        let (name, partitions) = if self.is_file { (FILE_TOPIC, 1) } else { (TELEMETRY_TOPIC, 4) };
        let admin = client.admin();
        match admin
            .create_topic(NewTopic::new(name).partitions(partitions).config("durability", "fsync"))
            .await
        {
            Ok(created) => self.line(&format!(
                "2  Topic {name} is there, with {}; durability fsync: acknowledged means on stable storage.",
                output::plural(u64::from(created.partitions), "partition", "partitions")
            ))?,
            Err(error) if error.kind() == ErrorKind::TopicExists => {
                self.line(&format!("2  Topic {name} is there from an earlier run."))?;
            }
            Err(error) => return Err(error).with_context(|| format!("create topic {name}")),
        }
        let mut ledger = Ledger::default();
        for end in admin.list_offsets(name, &[], StartAt::Latest).await? {
            ledger.expect(end.partition, end.offset);
        }
        Flow::new(name, ledger)
    }

    /// Lets records flow, kills and restarts the broker, and holds everything against the ledger.
    async fn direct(&mut self, client: &Client, producer: &Producer, flow: &Flow) -> anyhow::Result<Facts> {
        let what = self.source_name();
        self.line(&format!(
            "3  {what} streams through it: every record is sent, acknowledged and consumed again."
        ))?;
        self.watch(flow, BEFORE_KILL, |flow| flow.half_taken.get() || flow.sending_done.get()).await?;
        let outage = self.kill_and_restart(flow).await?;
        self.watch(flow, AFTER_KILL, |flow| flow.sending_done.get()).await?;
        flow.stop();
        wait(PATIENCE * 2, "every outcome", || flow.outcomes_done.get()).await?;
        // Everything has its outcome, so there is nothing left to flush but errors that are known.
        let _ = producer.flush().await;
        let ends = client.admin().list_offsets(&flow.topic, &[], StartAt::Latest).await?;
        wait(PATIENCE, "the consumer to reach the high watermarks", || {
            let counts = flow.counts.borrow();
            let positions: std::collections::BTreeMap<_, _> = counts.ledger.positions().collect();
            ends.iter()
                .all(|end| positions.get(&end.partition).is_none_or(|position| *position >= end.offset))
        })
        .await?;
        let counts = flow.counts.borrow();
        let verified = counts.ledger.finish().context("the promise was broken")?;
        anyhow::ensure!(verified.acknowledged > 0, "no record was acknowledged");
        Ok(Facts { verified, failed: counts.failed, outage, seconds: self.began.elapsed().as_secs_f64() })
    }

    const fn source_name(&self) -> &'static str {
        if self.is_file { "The file" } else { "Live telemetry of this host, from /proc," }
    }

    /// Shows how records flow, for some time or until `done`.
    async fn watch(
        &mut self,
        flow: &Flow,
        time: Duration,
        done: impl Fn(&Flow) -> bool,
    ) -> anyhow::Result<()> {
        let start = Instant::now();
        let mut shown = start;
        let mut before = (flow.counts.borrow().acknowledged, flow.counts.borrow().consumed);
        loop {
            let now = Instant::now();
            let over = now - start >= time || done(flow);
            if now - shown >= SHOW_EVERY || (over && now - shown >= SHOW_EVERY / 4) {
                before = self.show(flow, before, now - shown)?;
                shown = now;
            }
            if over {
                return Ok(());
            }
            if let Some(status) = self.broker.as_mut().map(Broker::ended).transpose()?.flatten() {
                anyhow::bail!("the broker ended with {status}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn show(&self, flow: &Flow, before: (u64, u64), time: Duration) -> anyhow::Result<(u64, u64)> {
        let counts = flow.counts.borrow();
        let rate = |now: u64, before: u64| output::count(((now - before) as f64 / time.as_secs_f64()) as u64);
        self.line(&format!(
            "   {:5.1} s  acknowledged {:>9} ({:>7}/s, p50 {}, p99 {})  consumed {:>9} ({:>7}/s, p50 {}, p99 {})",
            self.began.elapsed().as_secs_f64(),
            output::count(counts.acknowledged),
            rate(counts.acknowledged, before.0),
            output::microseconds(counts.acknowledging.at(0.5)),
            output::microseconds(counts.acknowledging.at(0.99)),
            output::count(counts.consumed),
            rate(counts.consumed, before.1),
            output::microseconds(counts.end_to_end.at(0.5)),
            output::microseconds(counts.end_to_end.at(0.99)),
        ))?;
        Ok((counts.acknowledged, counts.consumed))
    }

    /// Returns how long no record was acknowledged, if one was sent meanwhile.
    async fn kill_and_restart(&mut self, flow: &Flow) -> anyhow::Result<Option<Duration>> {
        let broker = self.broker.take().context("there is no broker")?;
        let (pid, addresses) = (broker.pid(), broker.addresses.clone());
        let on_their_way = in_the_middle(flow).await;
        let last_before = flow.counts.borrow().last_acknowledged;
        broker.kill()?;
        let killed = Instant::now();
        self.line(&format!(
            "4  SIGKILL: process {pid} is dead in the middle of it, with {} on their way.",
            output::plural(on_their_way, "record", "records")
        ))?;
        let broker = self.launcher.start_at(&addresses).await.context("restart the broker")?;
        self.line(&format!(
            "5  Restarted on the same data (process {}): recovered and ready after {} ms.",
            broker.pid(),
            broker.ready_after.as_millis()
        ))?;
        self.broker = Some(broker);
        let first_after = || flow.counts.borrow().last_acknowledged.filter(|&at| at > killed);
        // A file may have come to its end before.
        wait(PATIENCE, "an acknowledgement from the restarted broker", || {
            first_after().is_some() || flow.outcomes_done.get()
        })
        .await?;
        let outage = first_after().map(|at| at - last_before.unwrap_or(killed).min(killed));
        if let Some(outage) = outage {
            self.line(&format!("   {} without an acknowledgement, then it goes on:", millis(outage)))?;
        }
        Ok(outage)
    }

    fn report(&self, flow: &Flow, facts: &Facts) -> anyhow::Result<()> {
        let counts = flow.counts.borrow();
        let Verified { acknowledged, unknown_there, unknown_not_there } = facts.verified;
        if !self.say {
            return output::json(&json!({
                "verified": true,
                "topic": flow.topic,
                "sent": counts.sent,
                "acknowledged": acknowledged,
                "consumed": counts.consumed,
                "unknown": unknown_there + unknown_not_there,
                "unknown_there": unknown_there,
                "failed": facts.failed,
                "stage": counts.durability.map(stage_name),
                "kills": 1,
                "outage_ms": facts.outage.map(|outage| outage.as_millis() as u64),
                "acknowledged_us": counts.acknowledging.json(),
                "end_to_end_us": counts.end_to_end.json(),
                "seconds": facts.seconds,
            }));
        }
        self.line(&format!(
            "6  Verified: all {} records came back exactly once, in order, byte for byte.",
            output::count(acknowledged)
        ))?;
        self.line(&format!(
            "   Sent {}, acknowledged {} ({}), consumed {}.",
            output::count(counts.sent),
            output::count(acknowledged),
            counts.durability.map_or("no stage", stage_name),
            output::count(counts.consumed),
        ))?;
        self.line(&format!(
            "   {} of unknown outcome when the broker died: {} are there, {} are not; {} refused.",
            output::plural(unknown_there + unknown_not_there, "record was", "records were"),
            output::count(unknown_there),
            output::count(unknown_not_there),
            output::count(facts.failed),
        ))?;
        if self.is_file && !flow.at_end.get() {
            self.line("   The file goes on; highwater produce sends all of it.")?;
        }
        self.line(&format!("   Until acknowledged: {}", counts.acknowledging.text()))?;
        self.line(&format!("   Until consumed:     {}", counts.end_to_end.text()))?;
        Ok(())
    }

    /// Says what to try, and keeps records flowing until Ctrl-C.
    async fn stay(&mut self, client: &Client, producer: &Producer, topic: &str) -> anyhow::Result<()> {
        let Some(broker) = &self.broker else { return Ok(()) };
        let program = std::env::args().next().unwrap_or_else(|| "highwater".to_owned());
        let bootstrap = match broker.addresses.listen.as_str() {
            "127.0.0.1:9470" => String::new(),
            other => format!(" --bootstrap {other}"),
        };
        self.line("\nThe broker keeps running. Try, in another terminal:\n")?;
        for command in [
            format!("topic describe {topic}"),
            format!("consume {topic} --from latest --format json"),
            "topic create mine --partitions 3".to_owned(),
            "produce mine --file README.md".to_owned(),
            "consume mine --exit-at-end".to_owned(),
            "bench produce --create --records 500000 --size 1024".to_owned(),
            "bench consume".to_owned(),
        ] {
            self.line(&format!("  {program}{bootstrap} {command}"))?;
        }
        if let Some(http) = &broker.addresses.http {
            self.line(&format!("  curl http://{http}/metrics"))?;
        }
        self.line("\nCtrl-C ends it.")?;
        let mut source = Source::telemetry()?;
        if self.is_file {
            return std::future::pending().await;
        }
        self.keep_flowing(client, producer, &mut source, topic).await
    }

    async fn keep_flowing(
        &mut self,
        client: &Client,
        producer: &Producer,
        source: &mut Source,
        topic: &str,
    ) -> anyhow::Result<()> {
        let mut ledger = Ledger::default();
        for end in client.admin().list_offsets(topic, &[], StartAt::Latest).await? {
            ledger.expect(end.partition, end.offset);
        }
        let flow = Flow::new(topic, ledger)?;
        let consumer = client.consumer(topic).from(StartAt::Latest).build().await?;
        let progress = output::Progress::new(None, output::Unit::Records);
        let show = async {
            loop {
                tokio::time::sleep(SHOW_EVERY).await;
                let counts = flow.counts.borrow();
                progress.set(counts.ledger.verified());
                progress.say(format!("acknowledged and back, {}", counts.end_to_end.text()));
            }
        };
        tokio::select! {
            result = flow.produce(producer, source) => result,
            result = flow.consume(client, consumer) => result,
            () = show => Ok(()),
        }
    }
}

/// Waits for a moment at which records are on their way, and returns how many.
async fn in_the_middle(flow: &Flow) -> u64 {
    let deadline = Instant::now() + Duration::from_millis(500);
    loop {
        let on_their_way = {
            let counts = flow.counts.borrow();
            counts.sent - counts.acknowledged - counts.unknown - counts.failed
        };
        if on_their_way > 0 || Instant::now() >= deadline {
            return on_their_way;
        }
        tokio::task::yield_now().await;
    }
}

fn millis(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}

/// Waits for a condition.
async fn wait(within: Duration, what: &str, condition: impl Fn() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + within;
    while !condition() {
        anyhow::ensure!(Instant::now() < deadline, "waited {within:?} for {what}");
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
