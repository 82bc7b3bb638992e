//! The steps of the quickstart.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use highwater_client::{Client, ErrorKind, NewTopic, NodeId, Producer, StartAt, TopicMetadata};

use super::flow::Flow;
use super::ledger::Ledger;
use super::report::{self, Facts, Killed};
use super::source::Source;
use super::trio::{BROKERS, Trio};
use crate::connect::connect_to;
use crate::output::{self, Progress, Unit};
use crate::verify::verify;

/// How long records flow before the leader is killed, while it is away, and after it is back.
const BEFORE_KILL: Duration = Duration::from_secs(4);
const WITHOUT_IT: Duration = Duration::from_secs(2);
const AFTER_RETURN: Duration = Duration::from_secs(3);
/// How long one thing may take that should take moments: connecting, a topic, a new leader, the last acknowledgements.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often figures are shown.
const SHOW_EVERY: Duration = Duration::from_secs(1);
/// How often conditions are looked at.
const LOOK: Duration = Duration::from_millis(5);

const TELEMETRY_TOPIC: &str = "telemetry";
const FILE_TOPIC: &str = "lines";

/// The tour, and everything that has to end with it.
#[derive(Debug)]
pub(super) struct Tour {
    /// Whether to talk to people, rather than print one document at the end.
    say: bool,
    brokers: Trio,
    /// Taken when records begin to flow.
    source: Option<Source>,
    is_file: bool,
    began: Instant,
    /// What is under way, for messages.
    doing: RefCell<String>,
}

impl Tour {
    /// Nothing has begun.
    pub(super) fn new(say: bool, brokers: Trio, source: Source, is_file: bool) -> Self {
        let doing = RefCell::new("starting".to_owned());
        Self { say, brokers, source: Some(source), is_file, began: Instant::now(), doing }
    }

    /// Tells people.
    pub(super) fn line(&self, text: &str) -> anyhow::Result<()> {
        if self.say { output::line(text) } else { Ok(()) }
    }

    /// What is under way.
    pub(super) fn doing(&self) -> String {
        self.doing.borrow().clone()
    }

    /// Ends the brokers.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        self.brokers.stop().await
    }

    /// What the brokers said last.
    pub(super) fn log_ends(&self) -> String {
        self.brokers.log_ends()
    }

    fn begin(&self, what: &str) {
        what.clone_into(&mut self.doing.borrow_mut());
    }

    /// All of it. Returns once everything is verified and, without `exit`, never by itself.
    ///
    /// # Errors
    /// When the promise was broken, or something did not come in time.
    pub(super) async fn run(&mut self, exit: bool) -> anyhow::Result<bool> {
        self.line("Highwater quickstart: nothing below the high watermark is ever lost. Watch it try.\n")?;
        self.start().await?;
        self.begin("connecting to the brokers");
        let client = connect_to(&self.brokers.addresses(), PATIENCE).await?;
        let flow = self.prepare(&client).await?;
        let consumer = client.consumer(&flow.topic).from(StartAt::Latest).build().await?;
        let producer = client.producer().linger(Duration::ZERO).build();
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
        if self.say {
            report::lines(&flow, &facts).iter().try_for_each(|line| self.line(line))?;
            if self.is_file && !flow.at_end.get() {
                self.line("   The file goes on; highwater produce sends all of it.")?;
            }
        } else {
            output::json(&report::document(&flow, &facts))?;
        }
        if !exit {
            self.stay(&client, &producer, &flow.topic).await?;
        }
        Ok(true)
    }

    async fn start(&mut self) -> anyhow::Result<()> {
        self.begin("starting three brokers");
        let after = self.brokers.start().await?;
        let mut text = format!("1  Three brokers run, and are one cluster after {}:", millis(after));
        for broker in self.brokers.running() {
            text.push_str(&format!(
                "\n   broker {} at {} (process {})",
                broker.node_id,
                broker.addresses.listen,
                broker.pid()
            ));
        }
        self.line(&text)
    }

    /// Makes the topic, or finds it from an earlier run.
    async fn prepare(&self, client: &Client) -> anyhow::Result<Flow> {
        let (name, partitions) = if self.is_file { (FILE_TOPIC, 1) } else { (TELEMETRY_TOPIC, 4) };
        self.begin("making the topic");
        let admin = client.admin();
        let topic =
            NewTopic::new(name).partitions(partitions).replication(BROKERS).config("durability", "fsync");
        match admin.create_topic(topic).await {
            Ok(created) => self.line(&format!(
                "2  Topic {name} has {} of {} each; durability fsync, acks all: acknowledged means\n   \
                 flushed to the disk of every broker that is in sync, of at least two.",
                output::plural(u64::from(created.partitions), "partition", "partitions"),
                output::plural(u64::from(created.replication), "replica", "replicas"),
            ))?,
            Err(error) if error.kind() == ErrorKind::TopicExists => {
                self.line(&format!("2  Topic {name} is there from an earlier run."))?;
            }
            Err(error) => return Err(error).with_context(|| format!("create topic {name}")),
        }
        self.in_sync(client, name, "every replica to be in sync").await?;
        let mut ledger = Ledger::default();
        for end in admin.list_offsets(name, &[], StartAt::Latest).await? {
            ledger.expect(end.partition, end.offset);
        }
        Flow::new(name, ledger)
    }

    /// Lets records flow, kills a leader and brings it back, and holds everything against the ledger.
    async fn direct(&mut self, client: &Client, producer: &Producer, flow: &Flow) -> anyhow::Result<Facts> {
        let what = if self.is_file { "The file" } else { "Live telemetry of this host, from /proc," };
        self.line(&format!(
            "3  {what} streams through it: every record is sent, acknowledged and consumed again."
        ))?;
        self.begin("watching records flow");
        self.watch(flow, BEFORE_KILL, |flow| flow.half_taken.get() || flow.sending_done.get()).await?;
        let killed = self.kill_a_leader(client, flow).await?;
        self.begin("watching records flow after the leader is back");
        self.watch(flow, AFTER_RETURN, |flow| flow.sending_done.get()).await?;
        flow.stop();
        self.begin("waiting for the last acknowledgements");
        self.wait("every outcome", || flow.outcomes_done.get()).await?;
        // Everything has its outcome, so there is nothing left to flush but errors that are known.
        let _ = producer.flush().await;
        let ends = client.admin().list_offsets(&flow.topic, &[], StartAt::Latest).await?;
        self.wait("the consumer to reach the high watermarks", || {
            let counts = flow.counts.borrow();
            let positions: BTreeMap<_, _> = counts.ledger.positions().collect();
            ends.iter()
                .all(|end| positions.get(&end.partition).is_none_or(|position| *position >= end.offset))
        })
        .await?;
        let verified = flow.counts.borrow().ledger.finish().context("the promise was broken")?;
        let unknown = verified.unknown_there + verified.unknown_not_there;
        let refused = flow.counts.borrow().refused;
        anyhow::ensure!(verified.acknowledged > 0, "no record was acknowledged");
        anyhow::ensure!(
            unknown == 0,
            "the promise was broken: {unknown} records are of unknown outcome, which an idempotent producer finds out"
        );
        anyhow::ensure!(refused == 0, "{refused} records were refused, although a leader was there in time");
        self.begin("comparing the replicas");
        let compared =
            verify(client, PATIENCE, &flow.topic, &[], &Progress::new(None, Unit::Records)).await?;
        let compared = compared.with_context(|| format!("topic {} is gone", flow.topic))?;
        for partition in &compared {
            anyhow::ensure!(
                partition.is_equal(),
                "the replicas are not the same:\n{}",
                partition.remarks().join("\n")
            );
        }
        let batches_equal = compared.iter().map(|partition| partition.batches()).sum();
        Ok(Facts { verified, killed, batches_equal, seconds: self.began.elapsed().as_secs_f64() })
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
            self.brokers.check()?;
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

    /// Kills the leader of partition 0, waits until others lead what it led, and brings it back.
    async fn kill_a_leader(&mut self, client: &Client, flow: &Flow) -> anyhow::Result<Killed> {
        self.begin("looking for the leader of partition 0");
        let (topic, controller) = ask(client, &flow.topic).await?;
        let leader = topic.partitions.first().and_then(|partition| partition.leader);
        let leader = leader.context("partition 0 has no leader")?;
        let led = topic.partitions.iter().filter(|partition| partition.leader == Some(leader));
        let led: Vec<_> = led.map(|partition| partition.partition).collect();
        let was_controller = controller == Some(leader);
        let pid = self.brokers.get(leader.get())?.pid();
        let on_their_way = in_the_middle(flow).await;
        let killed = Instant::now();
        self.brokers.kill(leader.get())?;
        flow.killed();
        self.line(&format!(
            "4  SIGKILL: broker {leader} (process {pid}) is dead in the middle of it, with {} on their way. It led\n   \
             {} of {}{}.",
            output::plural(on_their_way, "record", "records"),
            led.len(),
            output::plural(topic.partitions.len() as u64, "partition", "partitions"),
            if was_controller { ", and was the cluster's controller" } else { "" }
        ))?;
        self.begin("waiting for others to lead what the killed broker led");
        // A file may have come to its end before.
        self.wait("an acknowledgement by the new leaders", || {
            let counts = flow.counts.borrow();
            flow.outcomes_done.get() || led.iter().all(|led| counts.first_after_kill.contains_key(led))
        })
        .await?;
        let first_after: Option<Vec<Instant>> = {
            let counts = flow.counts.borrow();
            led.iter().map(|led| counts.first_after_kill.get(led).copied()).collect()
        };
        let fail_over = first_after.and_then(|all| all.into_iter().max()).map(|at| at - killed);
        let now = self.led_again(client, &flow.topic, leader).await?;
        let first = now.partitions.first().context("partition 0 is gone")?;
        let next_leader = first.leader.context("partition 0 has no leader")?;
        let after = fail_over
            .map_or_else(|| "The file had ended".to_owned(), |after| format!("After {}", millis(after)));
        self.line(&format!(
            "5  {after}: broker {next_leader} leads partition 0 (epoch {}), and it goes on with two brokers:",
            first.leader_epoch
        ))?;
        self.begin("watching records flow with two brokers");
        self.watch(flow, WITHOUT_IT, |flow| flow.sending_done.get()).await?;
        self.begin("bringing the killed broker back");
        let back = Instant::now();
        let broker = self.brokers.start_again(leader.get()).await.context("restart the broker")?;
        let (pid, ready_after) = (broker.pid(), broker.ready_after()?.unwrap_or_default());
        self.in_sync(client, &flow.topic, "the broker to be in sync again").await?;
        let in_sync_after = back.elapsed();
        self.line(&format!(
            "6  Broker {leader} is back on the same data (process {pid}): ready after {}, and in sync again after {}.",
            millis(ready_after),
            millis(in_sync_after)
        ))?;
        let led = led.iter().map(|led| led.get()).collect();
        let (node_id, next_leader) = (leader.get(), next_leader.get());
        Ok(Killed { node_id, was_controller, led, next_leader, fail_over, ready_after, in_sync_after })
    }

    /// Waits until every replica of the topic is in sync.
    async fn in_sync(&self, client: &Client, topic: &str, what: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (metadata, _) = ask(client, topic).await?;
            let is_in_sync = |partition: &highwater_client::PartitionMetadata| {
                partition.leader.is_some() && partition.in_sync.len() == partition.replicas.len()
            };
            if metadata.partitions.iter().all(is_in_sync) {
                return Ok(());
            }
            let lacking = metadata.partitions.iter().filter(|partition| !is_in_sync(partition)).count();
            anyhow::ensure!(
                Instant::now() < deadline,
                "waited {PATIENCE:?} for {what}: it is not so in {lacking} of {} partitions",
                metadata.partitions.len()
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until every partition is led, by another broker than `dead`.
    async fn led_again(&self, client: &Client, topic: &str, dead: NodeId) -> anyhow::Result<TopicMetadata> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (metadata, _) = ask(client, topic).await?;
            let is_led = |leader: Option<NodeId>| leader.is_some_and(|leader| leader != dead);
            if metadata.partitions.iter().all(|partition| is_led(partition.leader)) {
                return Ok(metadata);
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "waited {PATIENCE:?} for other leaders than broker {dead}"
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits for a condition.
    async fn wait(&self, what: &str, condition: impl Fn() -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            anyhow::ensure!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Says what to try, and keeps records flowing until Ctrl-C.
    async fn stay(&mut self, client: &Client, producer: &Producer, topic: &str) -> anyhow::Result<()> {
        let program = std::env::args().next().unwrap_or_else(|| "highwater".to_owned());
        let bootstrap = if self.brokers.has_usual_ports() {
            String::new()
        } else {
            format!(" --bootstrap {}", self.brokers.addresses().join(","))
        };
        self.line("\nThe brokers keep running. Try, in another terminal:\n")?;
        for command in [
            "cluster status".to_owned(),
            format!("topic describe {topic}"),
            format!("verify {topic}"),
            format!("consume {topic} --from latest --format json"),
            "topic create mine --partitions 3".to_owned(),
            "produce mine --file README.md".to_owned(),
            "consume mine --exit-at-end".to_owned(),
            "bench produce --create --records 500000 --size 1024".to_owned(),
        ] {
            self.line(&format!("  {program}{bootstrap} {command}"))?;
        }
        let http = self.brokers.running().first().and_then(|broker| broker.addresses.http.clone());
        if let Some(http) = http {
            self.line(&format!("  curl http://{http}/metrics"))?;
        }
        self.line("\nOr kill a broker by its process id, and look again. Ctrl-C ends all of them.")?;
        if self.is_file {
            return std::future::pending().await;
        }
        keep_flowing(client, producer, topic).await
    }
}

/// Telemetry without end.
async fn keep_flowing(client: &Client, producer: &Producer, topic: &str) -> anyhow::Result<()> {
    let mut source = Source::telemetry()?;
    let mut ledger = Ledger::default();
    for end in client.admin().list_offsets(topic, &[], StartAt::Latest).await? {
        ledger.expect(end.partition, end.offset);
    }
    let flow = Flow::new(topic, ledger)?;
    let consumer = client.consumer(topic).from(StartAt::Latest).build().await?;
    let progress = Progress::new(None, Unit::Records);
    let show = async {
        loop {
            tokio::time::sleep(SHOW_EVERY).await;
            let counts = flow.counts.borrow();
            progress.set(counts.ledger.verified());
            progress.say(format!("acknowledged and back, {}", counts.end_to_end.text()));
        }
    };
    tokio::select! {
        result = flow.produce(producer, &mut source) => result,
        result = flow.consume(client, consumer) => result,
        () = show => Ok(()),
    }
}

/// Where the topic is, and who is the controller.
async fn ask(client: &Client, topic: &str) -> anyhow::Result<(TopicMetadata, Option<NodeId>)> {
    let metadata = client.admin().metadata(&[topic]).await?;
    let found = metadata.topics.into_iter().find(|found| found.name == topic);
    Ok((found.with_context(|| format!("topic {topic} is gone"))?, metadata.controller))
}

/// Waits for a moment at which records are on their way, and returns how many.
async fn in_the_middle(flow: &Flow) -> u64 {
    let deadline = Instant::now() + Duration::from_millis(500);
    loop {
        let on_their_way = {
            let counts = flow.counts.borrow();
            counts.sent - counts.acknowledged - counts.unknown - counts.refused
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
