//! `highwater bench produce` and `latency` with loads of different shapes.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::{Broker, check, run};

/// Everything in a topic, as `highwater consume` prints it.
fn records(broker: &Broker, topic: &str) -> Vec<Value> {
    let printed = broker.good(&["consume", topic, "--from", "earliest", "--exit-at-end", "--format", "json"]);
    let text = String::from_utf8(printed).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn sizes_follow_from_their_distribution_and_are_checked_against_it() {
    let broker = Broker::start();
    let produce = ["bench", "produce", "--create", "--durability", "os", "--records", "20000"];
    for (topic, sizes) in [("u", "100..300"), ("l", "lognormal(200,1.5)"), ("t", "100:9,1KiB:1")] {
        let report = broker.json(&[&produce[..], &["--topic", topic, "--size", sizes]].concat());
        assert_eq!(report["records"], json!(20_000));
        assert_eq!(report["size"], json!(sizes));
        let mean = report["bytes"].as_f64().unwrap() / 20_000.0;
        let told = report["size_mean"].as_f64().unwrap();
        assert!((mean / told - 1.0).abs() < 0.03, "{sizes}: {mean} bytes on average, not {told}");
        let consume = ["bench", "consume", "--topic", topic, "--size", sizes];
        let consumed = broker.json(&consume);
        assert_eq!((&consumed["records"], &consumed["bytes"]), (&json!(20_000), &report["bytes"]));
    }
    let other = ["bench", "consume", "--topic", "u", "--size", "100..301"];
    let output = run(broker.command(&other));
    check(&output, 2, &other);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("partition 0, offset ") && text.contains(" bytes, not "), "{text}");
}

#[test]
fn keys_come_as_often_as_their_skew_says_and_stay_in_their_partition() {
    let broker = Broker::start();
    let report = broker.json(&[
        "bench",
        "produce",
        "--create",
        "--partitions",
        "4",
        "--durability",
        "os",
        "--records",
        "5000",
        "--size",
        "32",
        "--keys",
        "10",
        "--key-skew",
        "zipf(1)",
    ]);
    assert_eq!((&report["keys"], &report["key_skew"]), (&json!(10), &json!("zipf(1)")));
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut partition_of: BTreeMap<String, Value> = BTreeMap::new();
    for record in records(&broker, "bench") {
        let key = record["key"].as_str().unwrap().to_owned();
        let first = partition_of.entry(key.clone()).or_insert_with(|| record["partition"].clone());
        assert_eq!(*first, record["partition"], "{key}");
        *counts.entry(key).or_default() += 1;
    }
    assert_eq!(counts.values().sum::<u64>(), 5000);
    assert_eq!(counts.len(), 10);
    let harmonic: f64 = (1..=10).map(|rank| 1.0 / f64::from(rank)).sum();
    for (rank, (key, count)) in (1..).zip(&counts) {
        assert_eq!(*key, format!("key-{:012}", rank - 1));
        let share = *count as f64 / 5000.0;
        assert!((share - 1.0 / f64::from(rank) / harmonic).abs() < 0.03, "{key}: {share}");
    }
}

#[test]
fn several_producers_share_a_load_and_everything_they_wrote_is_checked() {
    let broker = Broker::start();
    let produce =
        ["bench", "produce", "--create", "--durability", "os", "--size", "100", "--connections", "3"];
    let report = broker.json(&[&produce[..], &["--records", "10001", "--warm-up", "50ms"]].concat());
    assert_eq!((&report["records"], &report["connections"]), (&json!(10_001), &json!(3)));
    let warm_up = report["warm_up_records"].as_u64().unwrap();
    assert!(warm_up > 0, "{report}");
    assert_eq!(report["warm_up_seconds"], json!(0.05));
    let consumed = broker.json(&["bench", "consume", "--size", "100"]);
    assert_eq!(consumed["records"], json!(10_001 + warm_up), "warm-up and measured records, without a gap");
    assert_eq!(consumed["runs"], json!(3), "one for each producer");
    let rate = ["--topic", "rate", "--records", "1000", "--rate", "2000", "--send-each"];
    let report = broker.json(&[&produce[..], &rate].concat());
    assert_eq!((&report["records"], &report["bytes"]), (&json!(1000), &json!(100_000)));
    assert!((0.45..2.0).contains(&report["seconds"].as_f64().unwrap()), "1000 at 2000 a second: {report}");
    assert!(report["generator"]["waiting_for_schedule"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!(broker.json(&["bench", "consume", "--topic", "rate"])["runs"], json!(3));
}

#[test]
fn latency_with_every_setting_tells_them_all() {
    let broker = Broker::start();
    let directory = tempfile::tempdir().unwrap();
    let html = directory.path().join("report.html");
    let arguments = [
        "bench",
        "latency",
        "--create",
        "--partitions",
        "2",
        "--durability",
        "interval(10ms)",
        "--rate",
        "1000",
        "--duration",
        "500ms",
        "--warm-up",
        "100ms",
        "--size",
        "64..512",
        "--keys",
        "100",
        "--connections",
        "2",
        "--linger",
        "1ms",
        "--acks",
        "leader",
        "--compression",
        "lz4",
        "--entropy",
        "2",
        "--html",
        html.to_str().unwrap(),
    ];
    let report = broker.json(&arguments);
    assert_eq!(report["records"], json!(500), "the warm-up is not among them");
    let bytes = report["bytes"].as_u64().unwrap();
    assert!((500 * 64..=500 * 512).contains(&bytes), "{report}");
    for (name, expected) in [
        ("durability", json!("interval(10ms)")),
        ("acks", json!("leader")),
        ("rate", json!(1000)),
        ("duration_seconds", json!(0.5)),
        ("warm_up_seconds", json!(0.1)),
        ("size", json!("64..512")),
        ("size_mean", json!(288.0)),
        ("entropy_bits", json!(2)),
        ("keys", json!(100)),
        ("key_skew", json!("uniform")),
        ("connections", json!(2)),
        ("linger_us", json!(1000)),
        ("compression", json!("lz4")),
    ] {
        assert_eq!(report[name], expected, "{name}");
    }
    let packed = report["compressed_to"].as_f64().unwrap();
    assert!((0.25..0.5).contains(&packed), "2 bits of 8, and heads: {packed}");
    let page = std::fs::read_to_string(&html).unwrap();
    for setting in ["size 64..512", "entropy bits 2", "keys 100", "linger us 1000", "compression lz4"] {
        assert!(page.contains(setting), "{setting} is not in: {page}");
    }
    assert!(broker.json(&["bench", "consume", "--size", "64..512"])["records"] == json!(600));
}
