//! `highwater bench …`.

use serde_json::{Value, json};

use crate::harness::{Broker, check, run};

fn check_shape(report: &Value, records: u64, size: u64) {
    assert_eq!(report["records"], json!(records));
    let number =
        |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("{name} is no number: {report}"));
    let (seconds, rate) = (number("seconds"), number("records_per_second"));
    assert!(seconds > 0.0 && (rate * seconds / records as f64 - 1.0).abs() < 1e-6, "{report}");
    let megabytes = number("megabytes_per_second") * seconds;
    assert!((megabytes * 1e6 / (records * size) as f64 - 1.0).abs() < 1e-6, "{report}");
    let latency = |name: &str| report["latency_us"][name].as_u64().unwrap();
    assert!(latency("p50") <= latency("p99"), "{report}");
    assert!(latency("p99") <= latency("p999") && latency("p999") <= latency("max"), "{report}");
    assert_eq!(report["replication"], json!(1));
}

#[test]
fn what_is_produced_is_consumed_and_checked() {
    let broker = Broker::start();
    let create = ["bench", "produce", "--topic", "b", "--create", "--durability", "os", "--size", "100"];
    let report = broker.json(&[&create[..], &["--records", "50000"]].concat());
    check_shape(&report, 50_000, 100);
    assert_eq!((&report["acks"], &report["durability"]), (&json!("all"), &json!("os")));
    assert_eq!(report["stage"], "written");
    let each = ["bench", "produce", "--topic", "b", "--size", "100", "--records", "20000", "--send-each"];
    check_shape(&broker.json(&each), 20_000, 100);
    let report = broker.json(&["bench", "consume", "--topic", "b", "--size", "100"]);
    check_shape(&report, 70_000, 100);
    assert_eq!((&report["checked"], &report["runs"]), (&json!(true), &json!(2)));
}

#[test]
fn fsync_on_several_partitions_and_an_open_loop() {
    let broker = Broker::start();
    let report = broker.json(&[
        "bench",
        "produce",
        "--create",
        "--partitions",
        "3",
        "--records",
        "2000",
        "--size",
        "200",
        "--rate",
        "4000",
    ]);
    check_shape(&report, 2000, 200);
    assert_eq!((&report["durability"], &report["stage"]), (&json!("fsync"), &json!("flushed")));
    assert!((0.45..2.0).contains(&report["seconds"].as_f64().unwrap()), "2000 at 4000 a second: {report}");
    check_shape(&broker.json(&["bench", "consume", "--records", "2000"]), 2000, 200);
    let latency = [
        "bench",
        "latency",
        "--topic",
        "l",
        "--create",
        "--rate",
        "500",
        "--duration",
        "1s",
        "--warm-up",
        "200ms",
    ];
    let report = broker.json(&latency);
    assert_eq!(report["records"], json!(500));
    assert!(report["acknowledged_us"]["p50"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn somebody_elses_records_are_not_taken_for_payloads() {
    let broker = Broker::start();
    broker.good(&["topic", "create", "t"]);
    check(&broker.feed(&["produce", "t"], b"this is not a payload\n"), 0, &["produce"]);
    let output = run(broker.command(&["bench", "consume", "--topic", "t"]));
    check(&output, 2, &["bench consume"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("partition 0, offset 0") && text.contains("did not write"), "{text}");
    let other = ["bench", "produce", "--topic", "t", "--create", "--durability", "os", "--records", "1"];
    let output = run(broker.command(&other));
    check(&output, 2, &other);
    assert!(String::from_utf8(output.stderr).unwrap().contains("durability fsync"));
}

#[test]
fn runs_are_repeated_and_leave_reports_that_need_nothing_else() {
    let broker = Broker::start();
    let directory = tempfile::tempdir().unwrap();
    let (html, csv) = (directory.path().join("report.html"), directory.path().join("report.csv"));
    let (html_arg, csv_arg) = (html.to_str().unwrap(), csv.to_str().unwrap());
    let produce =
        ["bench", "produce", "--create", "--durability", "os", "--size", "100", "--records", "20000"];
    let report =
        broker.json(&[&produce[..], &["--repeat", "3", "--html", html_arg, "--csv", csv_arg]].concat());
    check_shape(&report, 20_000, 100);
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 3);
    let mut rates: Vec<f64> = runs.iter().map(|run| run["records_per_second"].as_f64().unwrap()).collect();
    rates.sort_by(f64::total_cmp);
    let spread = &report["spread"]["records_per_second"];
    assert_eq!(*spread, json!({ "min": rates[0], "median": rates[1], "max": rates[2] }));
    assert_eq!(report["records_per_second"], spread["median"], "the run with the median stands for all");
    assert!(report["machine"]["cores"].as_u64().unwrap() > 0, "{report}");
    assert!(report["machine"]["version"].as_str().unwrap().contains("commit"), "{report}");
    assert!(report["generator"]["busiest_thread"].as_f64().unwrap() > 0.0, "{report}");

    let page = std::fs::read_to_string(&html).unwrap();
    assert_eq!(page.matches("<svg").count(), 3);
    assert!(page.contains("durability os") && page.contains("run 3") && page.contains("99.9 %"), "{page}");
    assert!(!page.contains("http") && !page.contains("<script") && !page.contains("NaN"), "{page}");
    let lines: Vec<String> = std::fs::read_to_string(&csv).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(lines[0].split(',').count(), 8);
    assert!(lines[1].starts_with("produce,1,0.000,"), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("produce,3,")), "{lines:?}");

    let nowhere = directory.path().join("none").join("report.html");
    let consume = ["bench", "consume", "--html", nowhere.to_str().unwrap()];
    let output = run(broker.command(&consume));
    check(&output, 2, &consume);
    assert!(String::from_utf8(output.stderr).unwrap().contains("none/report.html"));
}

#[test]
fn every_consumer_of_a_fanout_has_everything() {
    let broker = Broker::start();
    let produce =
        ["bench", "produce", "--create", "--durability", "os", "--size", "100", "--records", "5000"];
    broker.json(&produce);
    let report = broker.json(&["bench", "fanout", "--consumers", "20"]);
    check_shape(&report, 100_000, 100);
    assert_eq!((&report["consumers"], &report["records_each"]), (&json!(20), &json!(5000)));
    let output = run(broker.command(&["bench", "fanout", "--records", "6000"]));
    check(&output, 2, &["bench fanout"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("has 5000 records, not 6000"));
}
