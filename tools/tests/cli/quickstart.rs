//! `highwater quickstart`.

use std::fs;
use std::io::{BufRead, BufReader};

use rustix::process::{Pid, Signal, test_kill_process};
use serde_json::{Value, json};

use crate::harness::{Running, check, highwater, run, wait_for};

#[test]
fn live_telemetry_survives_the_death_of_a_leader_and_nothing_stays_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let mut command = highwater();
    command.env("TMPDIR", temporary.path()).args(["quickstart", "--exit", "--output", "json"]);
    let output = run(command);
    check(&output, 0, &["quickstart", "--exit"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["verified"], &report["stage"]), (&json!(true), &json!("flushed")));
    let number = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("{name}: {report}"));
    assert!(number("acknowledged") > 500, "{report}");
    assert_eq!((number("unknown"), number("failed")), (0, 0), "{report}");
    assert_eq!((number("sent"), number("consumed")), (number("acknowledged"), number("acknowledged")));
    assert_ne!(number("killed"), number("next_leader"));
    assert!(report["killed_led"].as_array().unwrap().contains(&json!(0)), "{report}");
    assert!(number("fail_over_ms") > 0 && number("batches_equal") > 0, "{report}");
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "its temporary directory is still there");
}

#[test]
fn a_file_of_lines_and_a_directory_that_is_kept() {
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("lines");
    fs::write(&file, (0..20_000).map(|number| format!("line {number}\n")).collect::<String>()).unwrap();
    let kept = temporary.path().join("kept");
    // The second time in the same directory the cluster is there already.
    for earlier in [false, true] {
        let mut command = highwater();
        command.args(["quickstart", "--exit"]).arg("--file").arg(&file).arg("--dir").arg(&kept);
        let output = run(command);
        check(&output, 0, &["quickstart", "--file"]);
        let text = String::from_utf8(output.stdout).unwrap();
        for part in [
            "1  Three brokers run",
            "4  SIGKILL: broker",
            "leads partition 0 (epoch",
            "in sync again after",
            "7  Verified: all",
            "none of unknown outcome",
            "are the same, by checksum",
        ] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        assert_eq!(text.contains("from an earlier run"), earlier, "{text}");
    }
    for node in 1..=3 {
        let mut command = highwater();
        command.args(["log", "verify", "--output", "json"]).arg(kept.join(format!("broker-{node}")));
        let output = run(command);
        check(&output, 0, &["log", "verify"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["records"].as_u64().unwrap() > 10_000, "{report}");
    }
}

#[test]
fn it_runs_until_ctrl_c_and_takes_its_brokers_with_it() {
    let temporary = tempfile::tempdir().unwrap();
    for signal in [Signal::INT, Signal::KILL] {
        let mut command = highwater();
        command.env("TMPDIR", temporary.path()).arg("quickstart");
        let mut running = Running::start(command);
        let mut lines = BufReader::new(running.stdout());
        let mut seen = String::new();
        let mut brokers = Vec::new();
        while brokers.len() < 3 {
            let mut line = String::new();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "it ended: {seen}");
            seen.push_str(&line);
            if let Some((_, rest)) = line.split_once("(process ") {
                let process = rest.split(')').next().unwrap().parse::<i32>().unwrap();
                brokers.push(Pid::from_raw(process).unwrap());
            }
        }
        assert!(brokers.iter().all(|broker| test_kill_process(*broker) == Ok(())), "the brokers run");
        running.signal(signal);
        drop(lines);
        let output = running.finish();
        if signal == Signal::INT {
            check(&output, 0, &["quickstart, interrupted"]);
            assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
        }
        // Even a quickstart that is killed takes its brokers with it.
        for broker in brokers {
            wait_for("the end of a broker", || test_kill_process(broker).is_err().then_some(()));
        }
    }
}

#[test]
fn a_file_that_is_not_there_is_a_failure() {
    for (path, said) in [
        ("/nowhere/at/all", "open /nowhere/at/all"),
        ("/dev/null", "is not a file"),
        ("/tmp", "is not a file"),
    ] {
        let mut command = highwater();
        command.args(["quickstart", "--exit", "--file", path]);
        let output = run(command);
        check(&output, 2, &["quickstart", "--file", path]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(said), "{text}");
    }
}
