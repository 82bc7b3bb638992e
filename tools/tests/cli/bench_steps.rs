//! `highwater bench partitions`, `cold`, `groups` and `recovery`.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{Broker, check, highwater, run};

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("{name} is no number: {value}"))
}

fn topics(broker: &Broker) -> Vec<String> {
    let listed = broker.json(&["topic", "list"]);
    let listed = listed["topics"].as_array().unwrap().iter().map(|topic| topic["topic"].as_str().unwrap());
    // The brokers' own ones stay.
    listed.filter(|name| !name.starts_with("hw-")).map(str::to_owned).collect()
}

#[test]
fn many_partitions_are_compared_with_one_and_removed_again() {
    let broker = Broker::start();
    let directory = tempfile::tempdir().unwrap();
    let (html, csv) = (directory.path().join("report.html"), directory.path().join("report.csv"));
    let bench = ["bench", "partitions", "--counts", "20,3", "--records", "2000", "--size", "100..300"];
    let small = ["--batch-bytes", "4KiB", "--repeat", "2", "--connections", "2"];
    let files = ["--html", html.to_str().unwrap(), "--csv", csv.to_str().unwrap()];
    let report = broker.json(&[&bench[..], &small, &files].concat());
    let rows = report["rows"].as_array().unwrap();
    let counts: Vec<_> = rows.iter().map(|row| row["partitions"].as_u64().unwrap()).collect();
    assert_eq!(counts, [1, 3, 20], "one alone is always there, and comes first");
    for row in rows {
        let expected = 2000 + row["partitions"].as_u64().unwrap();
        assert_eq!(row["consumed_records"], json!(expected), "and the one that opened each partition");
        for figure in ["create_us", "open_us", "first_batch_us", "delete_us", "acknowledged_us_p99"] {
            assert!(number(row, figure) > 0.0, "{figure}: {row}");
        }
    }
    assert_eq!((&rows[0]["produce_share"], &rows[0]["consume_share"]), (&json!(1.0), &json!(1.0)));
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    for (figure, share) in
        [("produce_megabytes_per_second", "produce_share"), ("consume_megabytes_per_second", "consume_share")]
    {
        let mut shares: Vec<f64> =
            runs.iter().map(|run| number(&run[2], figure) / number(&run[0], figure)).collect();
        shares.sort_by(f64::total_cmp);
        assert!((number(&rows[2], share) / shares[1] - 1.0).abs() < 1e-9, "{share}: {shares:?} {report}");
    }
    for (name, expected) in [
        ("durability", json!("os")),
        ("replication", json!(1)),
        ("batch_bytes", json!(4096)),
        ("size", json!("100..300")),
        ("connections", json!(2)),
        ("repeat", json!(2)),
    ] {
        assert_eq!(report[name], expected, "{name}");
    }
    assert_eq!(topics(&broker), Vec::<String>::new(), "what was made is gone");
    let lines: Vec<String> = fs::read_to_string(&csv).unwrap().lines().map(str::to_owned).collect();
    assert!(lines[0].starts_with("partitions,create_us,"), "{lines:?}");
    assert!(lines.len() == 4 && lines[3].starts_with("20,"), "{lines:?}");
    let page = fs::read_to_string(&html).unwrap();
    assert!(page.contains("durability os") && page.contains("20 partitions: produce"), "{page}");
}

#[test]
fn a_topic_of_somebody_else_is_not_touched_by_the_bench_of_partitions() {
    let broker = Broker::start();
    broker.good(&["topic", "create", "bench-partitions-1"]);
    let bench = ["bench", "partitions", "--counts", "2", "--records", "100"];
    let output = run(broker.command(&bench));
    check(&output, 2, &bench);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("topic bench-partitions-1 exists") && text.contains("--topic"), "{text}");
    assert_eq!(topics(&broker), ["bench-partitions-1"]);
    let few = ["bench", "partitions", "--counts", "50", "--records", "40"];
    let output = run(broker.command(&few));
    check(&output, 2, &few);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("too few for 50 partitions") && text.contains("--batch-bytes"), "{text}");
}

#[test]
fn live_traffic_is_measured_alone_and_beside_readers_of_old_data() {
    let broker = Broker::start_with_http("127.0.0.1:0");
    let cold = ["bench", "cold", "--topic", "old"];
    let output = run(broker.command(&cold));
    check(&output, 2, &cold);
    assert!(String::from_utf8(output.stderr).unwrap().contains("there is no topic old"));
    let produce =
        ["bench", "produce", "--topic", "old", "--create", "--partitions", "2", "--durability", "os"];
    broker.json(&[&produce[..], &["--records", "3000", "--size", "1KiB"]].concat());
    let directory = tempfile::tempdir().unwrap();
    let csv = directory.path().join("report.csv");
    let live =
        ["--rate", "500", "--duration", "400ms", "--warm-up", "100ms", "--readers", "2", "--size", "64"];
    let more = ["--metrics", &broker.http, "--csv", csv.to_str().unwrap()];
    let report = broker.json(&[&cold[..], &live, &more].concat());
    let rows = report["rows"].as_array().unwrap();
    let steps: Vec<_> = rows.iter().map(|row| row["step"].as_str().unwrap()).collect();
    assert_eq!(steps, ["alone", "beside readers", "alone again"]);
    for row in rows {
        assert_eq!(row["records"], json!(200), "500 a second for 0.4 s, the warm-up left out");
        assert!(number(row, "p50_us") > 0.0 && number(row, "p50_us") <= number(row, "p99_us"), "{row}");
        assert!(number(row, "p99_us") <= number(row, "max_us"), "{row}");
        let beside = row["step"] == "beside readers";
        assert_eq!(row["cold_megabytes_per_second"].is_number(), beside, "{row}");
        assert!(row["reads_from_memory"].is_u64() && row["reads_from_disk"].is_u64(), "{row}");
    }
    assert!(number(&rows[1], "cold_records") > 0.0, "{report}");
    let delay = number(&rows[1], "p99_us") - number(&rows[0], "p99_us");
    assert!((number(&report, "delay_us_p99") - delay).abs() < 1.0, "{report}");
    for (name, expected) in
        [("old_records", json!(3000)), ("readers", json!(2)), ("rate", json!(500)), ("size", json!(64))]
    {
        assert_eq!(report[name], expected, "{name}");
    }
    assert_eq!(topics(&broker), ["old"], "the live topic is gone");
    assert_eq!(fs::read_to_string(&csv).unwrap().lines().count(), 4);
    let wrong = ["bench", "cold", "--topic", "old", "--metrics", &broker.address];
    let output = run(broker.command(&wrong));
    check(&output, 2, &wrong);
    assert!(String::from_utf8(output.stderr).unwrap().contains("--http"));
}

#[test]
fn recovery_starts_brokers_of_its_own_and_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = highwater();
    command.args([
        "bench",
        "recovery",
        "--bytes",
        "1MiB",
        "--size",
        "1000",
        "--partitions",
        "3",
        "--starts",
        "2",
    ]);
    command.args(["--output", "json", "--dir"]).arg(directory.path());
    let output = run(command);
    check(&output, 0, &["bench", "recovery"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = 1_048_576_u64.div_ceil(1000);
    assert_eq!(report["acknowledged_records"], json!(expected));
    assert_eq!(report["records_that_came_back"], json!(expected));
    assert_eq!(report["bytes"], json!(expected * 1000));
    let rows = report["rows"].as_array().unwrap();
    let kinds: Vec<_> = rows.iter().map(|row| row["start"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        ["empty directory", "after SIGKILL", "after SIGKILL, log out of memory", "after a stop in order"]
    );
    for row in rows {
        assert_eq!(row["starts"], json!(2));
        let [least, median, most] =
            ["ready_us_min", "ready_us_median", "ready_us_max"].map(|name| number(row, name));
        assert!(least > 0.0 && least <= median && median <= most, "{row}");
        assert!(number(row, "resident_bytes") > 1e6, "{row}");
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "the directories of the brokers are gone");
    let nowhere = directory.path().join("none");
    let mut command = highwater();
    command.args(["bench", "recovery", "--dir"]).arg(&nowhere);
    let output = run(command);
    check(&output, 2, &["bench", "recovery", "--dir"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains(&*nowhere.to_string_lossy()), "{text}");
}

#[test]
fn groups_are_given_everything_once_while_members_join_and_leave() {
    let broker = Broker::start_with_http("127.0.0.1:0");
    let bench = ["bench", "groups", "--groups", "2", "--members", "2", "--partitions", "5", "--rate", "300"];
    // A member hears of a change within a third of its session.
    let times = ["--duration", "4s", "--session-timeout", "3s", "--commit-every", "100ms"];
    let times = [&times[..], &["--metrics", &broker.http]].concat();
    let report = broker.json(&[&bench[..], &times].concat());
    assert_eq!(report["records"], json!(3600), "300 a second for three steps of 4 s");
    assert_eq!((&report["duplicates"], &report["lost_partitions"]), (&json!(0), &json!(0)));
    assert_eq!(report["groups_that_gave_nothing"], json!(0), "3 and 2 of 5 become 2, 2 and 1");
    assert_eq!(report["even_gap_us"], json!(16_667), "each of 5 partitions has 60 a second");
    let rows = report["rows"].as_array().unwrap();
    let steps: Vec<_> = rows.iter().map(|row| row["step"].as_str().unwrap()).collect();
    assert_eq!(steps, ["members join", "steady", "one more joins", "it leaves again"]);
    assert_eq!(rows[0]["moved"], json!(10), "every partition of both groups gets an owner");
    assert!(rows[0]["delivered"].is_null() && rows[0]["commits"].is_null(), "{report}");
    let delivered: f64 = rows[1..].iter().map(|row| number(row, "delivered")).sum();
    assert!((delivered - 7200.0).abs() < 0.5, "all records, to both groups: {report}");
    assert_eq!((&rows[1]["moved"], &rows[1]["settled_us_max"]), (&json!(0), &Value::Null), "{report}");
    for row in [&rows[0], &rows[2], &rows[3]] {
        assert!(number(row, "moved") >= 2.0, "one partition of each group at the least: {row}");
        assert!(number(row, "settled_us_median") <= number(row, "settled_us_max"), "{row}");
    }
    for row in &rows[1..] {
        assert!(number(row, "commits") >= 4.0, "every member, several times: {row}");
        assert!(number(row, "heartbeats_per_second") > 0.0, "{row}");
        assert!(number(row, "gap_us_stayed") >= 15_000.0, "hardly less than the even gap: {row}");
    }
    assert_eq!(topics(&broker), Vec::<String>::new());
    let groups = broker.json(&["group", "list"]);
    assert!(!groups.to_string().contains("bench-groups"), "the groups are gone: {groups}");
    let few = ["bench", "groups", "--members", "4", "--partitions", "4"];
    let output = run(broker.command(&few));
    check(&output, 2, &few);
    assert!(String::from_utf8(output.stderr).unwrap().contains("too few for 4 members"));
}

#[test]
fn a_new_member_that_is_given_nothing_is_told_of() {
    let broker = Broker::start();
    let bench =
        ["bench", "groups", "--members", "2", "--partitions", "4", "--rate", "100", "--duration", "4s"];
    let report = broker.json(&[&bench[..], &["--session-timeout", "3s"]].concat());
    assert_eq!(report["groups_that_gave_nothing"], json!(1), "two each of 4, and 4 by 3 is 2, rounded up");
    assert_eq!((&report["records"], &report["duplicates"]), (&json!(1200), &json!(0)));
    let joins = &report["rows"][2];
    assert_eq!((&joins["step"], &joins["moved"]), (&json!("one more joins"), &json!(0)));
    assert!(joins["settled_us_max"].is_null(), "nothing changed hands: {joins}");
}
