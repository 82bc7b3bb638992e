//! `highwater cluster …`, `highwater verify` and what `topic describe` says of several brokers.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Running, check, highwater, run, wait_for};

/// Brokers that are one cluster.
struct Cluster {
    directory: TempDir,
    ports: Vec<u16>,
    running: BTreeMap<usize, Running>,
}

impl Cluster {
    /// Three brokers that have found each other, and room for a fourth.
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut cluster = Self { directory, ports: free_ports(4), running: BTreeMap::new() };
        for node in 1..=3 {
            cluster.spawn(node);
        }
        for node in 1..=3 {
            cluster.ready(node);
        }
        cluster
    }

    fn address(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.ports[node - 1])
    }

    fn path(&self, node: usize, what: &str) -> PathBuf {
        self.directory.path().join(format!("broker-{node}{what}"))
    }

    fn spawn(&mut self, node: usize) {
        let _ = fs::remove_file(self.path(node, ".json"));
        let log = fs::File::options().create(true).append(true).open(self.path(node, ".log")).unwrap();
        let mut command = highwater();
        command.args(["broker", "--http", "off", "--node-id", &node.to_string()]);
        command.args(["--listen", &self.address(node), "--data-dir"]).arg(self.path(node, ""));
        command.arg("--port-file").arg(self.path(node, ".json"));
        if node <= 3 {
            let voters: Vec<String> = (1..=3).map(|node| format!("{node}@{}", self.address(node))).collect();
            command.args(["--voters", &voters.join(",")]);
        } else {
            command.args(["--join", &self.address(1)]);
        }
        command.stdout(Stdio::null()).stderr(log);
        self.running.insert(node, Running::start(command));
    }

    fn ready(&mut self, node: usize) {
        let (ports, log) = (self.path(node, ".json"), self.path(node, ".log"));
        let running = self.running.get_mut(&node).unwrap();
        wait_for(&format!("broker {node}"), || {
            if let Some(status) = running.ended() {
                panic!("broker {node} ended with {status}: {}", fs::read_to_string(&log).unwrap());
            }
            ports.exists().then_some(())
        });
    }

    fn kill(&mut self, node: usize) {
        drop(self.running.remove(&node).unwrap());
    }

    fn stop(&mut self, node: usize) {
        let running = self.running.remove(&node).unwrap();
        running.signal(Signal::TERM);
        check(&running.finish(), 0, &["broker, asked to end"]);
    }

    /// How a command ends, and what it prints to both outputs.
    fn ask(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = highwater();
        let all: Vec<String> = (1..=3).map(|node| self.address(node)).collect();
        command.env("HIGHWATER_BOOTSTRAP", all.join(",")).args(arguments);
        let output = run(command);
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    }

    #[track_caller]
    fn expect(&self, code: i32, arguments: &[&str], parts: &[&str]) {
        let (ended, text) = self.ask(arguments);
        assert_eq!(ended, code, "{arguments:?}: {text}");
        for part in parts {
            assert!(text.contains(part), "{arguments:?}: '{part}' is not in: {text}");
        }
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let all: Vec<&str> = arguments.iter().copied().chain(["--output", "json"]).collect();
        let (_, text) = self.ask(&all);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    }

    /// Waits until every replica of every partition is in sync.
    fn in_sync(&self) {
        wait_for("every replica to be in sync", || {
            let status = self.json(&["cluster", "status"]);
            let whole = status["serves"] == true && status["partitions_under_replicated"] == 0;
            (whole && status["moves"] == json!([])).then_some(())
        });
    }

    fn produce(&self, topic: &str, lines: usize) {
        let file = self.directory.path().join("lines");
        fs::write(&file, (0..lines).map(|line| format!("line {line}\n")).collect::<String>()).unwrap();
        self.expect(0, &["produce", topic, "--file", file.to_str().unwrap()], &["acknowledged"]);
    }
}

/// Ports that nobody uses, below those that the system gives to connections and those that quickstarts look for.
fn free_ports(count: usize) -> Vec<u16> {
    // Tests of one process run beside each other, and ask before any of them listens.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 19_000 - (std::process::id() % 5000) as u16 - 100 * NEXT.fetch_add(1, Ordering::Relaxed);
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    (first..first + 100).filter(is_free).take(count).collect()
}

fn broker(status: &Value, node: usize) -> &Value {
    let brokers = status["brokers"].as_array().unwrap();
    brokers.iter().find(|broker| broker["node_id"] == node).unwrap_or_else(|| panic!("{node}: {status}"))
}

#[test]
fn an_operator_sees_three_brokers_and_the_death_of_one() {
    let mut cluster = Cluster::start();
    cluster.expect(0, &["cluster", "status"], &["3 of 3 active", "voters 1,2,3", "controller  broker"]);
    cluster.expect(0, &["cluster", "nodes"], &["NODE", "voter, controller", "active"]);
    cluster.expect(
        0,
        &["topic", "create", "orders", "--partitions", "6"],
        &["6 partitions of 3 replicas each"],
    );
    cluster.produce("orders", 3000);
    let status = cluster.json(&["cluster", "status"]);
    assert_eq!((&status["partitions"], &status["partitions_offline"]), (&json!(6), &json!(0)));
    for node in 1..=3 {
        assert_eq!(broker(&status, node)["replicas"], 6);
        assert!(broker(&status, node)["leaders"].as_u64().unwrap() >= 1, "leaderships are spread: {status}");
    }
    cluster.expect(0, &["verify", "orders"], &["equal", "all replicas of topic orders are equal"]);

    let described = cluster.json(&["topic", "describe", "orders"]);
    for partition in described["topics"][0]["partition_states"].as_array().unwrap() {
        let replicas = partition["replica_states"].as_array().unwrap();
        assert_eq!(replicas.len(), 3, "{partition}");
        for replica in replicas {
            assert_eq!((&replica["lag"], &replica["in_sync"]), (&json!(0), &json!(true)), "{partition}");
        }
    }
    cluster.kill(3);
    wait_for("broker 3 to be fenced", || {
        let status = cluster.json(&["cluster", "status"]);
        (broker(&status, 3)["state"] == "fenced" && status["partitions_offline"] == 0).then_some(())
    });
    cluster.produce("orders", 3000);
    cluster.expect(0, &["cluster", "status"], &["2 of 3 active", "6 with a replica that is not in sync"]);
    cluster.expect(1, &["verify", "orders"], &["broker 3: not compared"]);
    cluster.spawn(3);
    cluster.ready(3);
    cluster.in_sync();
    cluster.expect(0, &["verify", "orders", "--partition", "2"], &["all replicas"]);
    let verified = cluster.json(&["verify", "orders"]);
    assert_eq!((&verified["equal"], verified["partitions"].as_array().unwrap().len()), (&json!(true), 6));
}

#[test]
fn what_cannot_be_done_is_refused_with_the_reason() {
    let cluster = Cluster::start();
    cluster.expect(0, &["topic", "create", "orders", "--partitions", "3"], &["3 replicas"]);
    cluster.expect(0, &["topic", "create", "pair", "--replication", "2"], &["both must be in sync"]);
    for (code, arguments, said) in [
        (1, &["cluster", "drain", "3"][..], "broker 3"),
        (1, &["cluster", "drain", "9"], "there is no broker 9"),
        (1, &["cluster", "remove", "3"], "votes on metadata"),
        (1, &["cluster", "remove", "9"], "there is no broker 9"),
        (0, &["cluster", "rebalance", "--dry-run"], "nothing was moved"),
        (0, &["cluster", "rebalance", "--cancel"], ""),
        (0, &["cluster", "throttle", "5MiB"], ""),
        (1, &["verify", "nothing"], "there is no topic nothing"),
        (2, &["verify", "orders", "--partition", "7"], "has no partition 7"),
        (2, &["topic", "create", "four", "--replication", "4"], "replica"),
    ] {
        cluster.expect(code, arguments, &[said]);
    }
    assert_eq!(cluster.json(&["cluster", "status"])["move_bytes_per_second"], 5 << 20);
}

#[test]
fn a_broker_joins_gets_its_share_and_leaves() {
    let mut cluster = Cluster::start();
    cluster.expect(0, &["topic", "create", "orders", "--partitions", "12"], &["12 partitions"]);
    cluster.produce("orders", 2000);
    cluster.spawn(4);
    cluster.ready(4);
    let share = wait_for("broker 4 to have its share", || {
        let status = cluster.json(&["cluster", "status"]);
        let has = broker(&status, 4)["replicas"].as_u64().unwrap();
        (has > 0 && status["moves"] == json!([])).then_some(has)
    });
    // 36 replicas on 4 brokers: 9 each, and at most 10.
    assert!((6..=10).contains(&share), "{share}");
    cluster.in_sync();
    cluster.expect(0, &["verify", "orders"], &["all replicas"]);

    cluster.expect(0, &["cluster", "drain", "4", "--wait"], &["holds nothing any more"]);
    cluster.expect(1, &["cluster", "remove", "4"], &["stop it before"]);
    cluster.stop(4);
    wait_for("broker 4 to be removed", || (cluster.ask(&["cluster", "remove", "4"]).0 == 0).then_some(()));
    let status = cluster.json(&["cluster", "status"]);
    assert_eq!(status["brokers"].as_array().unwrap().len(), 3, "{status}");
    cluster.in_sync();
    cluster.expect(0, &["verify", "orders"], &["all replicas"]);
}

#[test]
fn a_bench_tells_which_pause_the_death_of_a_leader_costs() {
    let mut cluster = Cluster::start();
    cluster.expect(0, &["topic", "create", "steady"], &["1 partition of 3 replicas each"]);
    let mut command = highwater();
    command.env("HIGHWATER_BOOTSTRAP", cluster.address(1)).args(["bench", "failover", "--topic", "steady"]);
    command.args(["--rate", "500", "--duration", "5s", "--output", "json"]);
    let mut bench = Running::start(command);
    let leader = wait_for("records to flow", || {
        if bench.ended().is_some() {
            return Some(None);
        }
        let described = cluster.json(&["topic", "describe", "steady"]);
        let partition = &described["topics"][0]["partition_states"][0];
        let leader = || Some(partition["leader"].as_u64().unwrap() as usize);
        (partition["high_watermark"].as_u64()? > 300).then(leader)
    });
    let Some(leader) = leader else {
        let output = bench.finish();
        panic!("the bench ended early: {}", String::from_utf8_lossy(&output.stderr));
    };
    cluster.kill(leader);
    let output = bench.finish();
    check(&output, 0, &["bench", "failover"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["acknowledged"], &report["not_acknowledged"]), (&json!(2500), &json!(0)), "{report}");
    assert_eq!((&report["records"], &report["stage"]), (&json!(2500), &json!("flushed")));
    for who in ["producer", "consumer"] {
        assert!(report[who]["longest_milliseconds"].as_u64().unwrap() > 0, "{report}");
    }
}
