//! `highwater quickstart`.

use std::fs;
use std::io::{BufRead, BufReader};

use rustix::process::{Pid, Signal, test_kill_process};
use serde_json::{Value, json};

use crate::harness::{Running, check, highwater, run, wait_for};

#[test]
fn live_telemetry_survives_the_crash_and_nothing_stays_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let mut command = highwater();
    command.env("TMPDIR", temporary.path()).args(["quickstart", "--exit", "--output", "json"]);
    let output = run(command);
    check(&output, 0, &["quickstart", "--exit"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["verified"], &report["stage"]), (&json!(true), &json!("flushed")));
    let number = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("{name}: {report}"));
    assert!(number("acknowledged") > 500, "{report}");
    assert_eq!(number("sent"), number("acknowledged") + number("unknown") + number("failed"));
    assert_eq!(number("consumed"), number("acknowledged") + number("unknown_there"));
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "its temporary directory is still there");
}

#[test]
fn a_file_of_lines_and_a_directory_that_is_kept() {
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("lines");
    fs::write(&file, (0..20_000).map(|number| format!("line {number}\n")).collect::<String>()).unwrap();
    let kept = temporary.path().join("kept");
    let mut command = highwater();
    command.args(["quickstart", "--exit"]).arg("--file").arg(&file).arg("--dir").arg(&kept);
    let output = run(command);
    check(&output, 0, &["quickstart", "--file"]);
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["1  A broker runs", "4  SIGKILL", "5  Restarted", "6  Verified: all", "consumed"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    let mut command = highwater();
    command.args(["log", "verify", "--output", "json"]).arg(kept.join("data"));
    let output = run(command);
    check(&output, 0, &["log", "verify"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["records"].as_u64().unwrap() > 10_000, "{report}");
}

#[test]
fn it_runs_until_ctrl_c_and_takes_its_broker_with_it() {
    let temporary = tempfile::tempdir().unwrap();
    for signal in [Signal::INT, Signal::KILL] {
        let mut command = highwater();
        command.env("TMPDIR", temporary.path()).arg("quickstart");
        let mut running = Running::start(command);
        let mut lines = BufReader::new(running.stdout());
        let mut seen = String::new();
        let broker = loop {
            let mut line = String::new();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "it ended: {seen}");
            seen.push_str(&line);
            if let Some((_, rest)) = line.split_once("(process ") {
                break rest.split(')').next().unwrap().parse::<i32>().unwrap();
            }
        };
        let broker = Pid::from_raw(broker).unwrap();
        assert_eq!(test_kill_process(broker), Ok(()), "the broker runs");
        running.signal(signal);
        drop(lines);
        let output = running.finish();
        if signal == Signal::INT {
            check(&output, 0, &["quickstart, interrupted"]);
            assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
        }
        // Even a quickstart that is killed takes its broker with it.
        wait_for("the end of the broker", || test_kill_process(broker).is_err().then_some(()));
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
