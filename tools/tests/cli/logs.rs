//! `highwater log …`.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::{Broker, check, highwater, run};

/// A broker's directory with a topic of several segments, after a clean shutdown.
fn written() -> Broker {
    let mut broker = Broker::start();
    broker.good(&["topic", "create", "t", "--config", "segment_bytes=64KiB"]);
    for round in 0..6 {
        let text: String =
            (0..1000).map(|number| format!("round {round}, line {number}, and some more text\n")).collect();
        check(&broker.feed(&["produce", "t", "--key-separator", ","], text.as_bytes()), 0, &["produce"]);
    }
    broker.stop();
    broker
}

fn offline(broker: &Broker, arguments: &[&str], code: i32) -> Vec<u8> {
    let mut command = highwater();
    command.arg("log").args(arguments).arg(broker.data());
    let output = run(command);
    check(&output, code, arguments);
    output.stdout
}

fn verify(broker: &Broker, code: i32) -> Value {
    serde_json::from_slice(&offline(broker, &["verify", "--output", "json"], code)).unwrap()
}

fn segments(broker: &Broker) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for topic in fs::read_dir(broker.data().join("topics")).unwrap() {
        for file in fs::read_dir(topic.unwrap().path().join("0")).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "segment") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_good_directory_verifies_and_dumps() {
    let broker = written();
    let report = verify(&broker, 0);
    assert_eq!((&report["ok"], &report["faults"]), (&json!(true), &json!([])));
    assert_eq!((&report["partitions"], &report["records"]), (&json!(1), &json!(6000)));
    assert!(report["segments"].as_u64().unwrap() > 1, "{report}");
    let text = String::from_utf8(offline(&broker, &["verify"], 0)).unwrap();
    assert!(text.contains("6,000 records") && text.ends_with("no faults\n"), "{text}");

    let batches = offline(&broker, &["dump", "--output", "json"], 0);
    let mut next = 0;
    for line in batches.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let batch: Value = serde_json::from_slice(line).unwrap();
        assert_eq!(batch["base_offset"], json!(next));
        assert!(batch["durable_end"].as_u64().unwrap() <= next);
        next = batch["end_offset"].as_u64().unwrap();
    }
    assert_eq!(next, 6000);

    let record =
        offline(&broker, &["dump", "--records", "--from", "2999", "--count", "1", "--output", "json"], 0);
    let record: Value = serde_json::from_slice(&record).unwrap();
    assert_eq!((&record["offset"], &record["key"]), (&json!(2999), &json!("round 2")));
    let table = String::from_utf8(offline(&broker, &["dump", "--records", "--count", "3"], 0)).unwrap();
    assert_eq!(table.lines().filter(|line| line.contains("round 0")).count(), 3, "{table}");
    assert!(table.contains("(topic t, partition 0)"), "{table}");
}

#[test]
fn a_flipped_bit_is_named_with_file_position_and_offset() {
    let broker = written();
    for segment in segments(&broker) {
        let bytes = fs::read(&segment).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let name = segment.file_name().unwrap().to_str().unwrap();
        for position in [0, used / 3, used - 20] {
            let mut flipped = bytes.clone();
            flipped[position] ^= 4;
            fs::write(&segment, &flipped).unwrap();
            let report = verify(&broker, 1);
            assert_eq!(report["ok"], json!(false));
            let faults = report["faults"].as_array().unwrap();
            let fault = &faults[0];
            assert!(fault["file"].as_str().unwrap().ends_with(name), "{name} at {position}: {fault}");
            let (start, end) = (fault["position"].as_u64().unwrap(), fault["position_end"].as_u64().unwrap());
            assert!((start..end).contains(&(position as u64)), "{name} at {position}: {fault}");
            assert!(fault["offset"].is_u64() && fault["topic"] == "t", "{name} at {position}: {fault}");
        }
        fs::write(&segment, &bytes).unwrap();
    }
    verify(&broker, 0);
}

#[test]
fn a_segment_that_is_cut_short_or_gone_is_named() {
    let broker = written();
    let all = segments(&broker);
    let first = fs::read(&all[0]).unwrap();
    fs::write(&all[0], &first[..first.len() / 2]).unwrap();
    let report = verify(&broker, 1);
    assert!(report["faults"].to_string().contains(all[0].file_name().unwrap().to_str().unwrap()), "{report}");
    fs::remove_file(&all[0]).unwrap();
    let report = verify(&broker, 1);
    assert_eq!(report["faults"][0]["kind"], "missing", "{report}");
    fs::write(&all[0], &first).unwrap();

    let last = all.last().unwrap();
    let bytes = fs::read(last).unwrap();
    fs::remove_file(last).unwrap();
    let report = verify(&broker, 1);
    assert!(report["faults"].to_string().contains("offset"), "{report}");
    fs::write(last, bytes).unwrap();
    verify(&broker, 0);
}

#[test]
fn small_files_are_checked_too() {
    let broker = written();
    for name in ["directory", "clean", "boot"] {
        let path = broker.data().join(name);
        let bytes = fs::read(&path).unwrap();
        let mut flipped = bytes.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        fs::write(&path, flipped).unwrap();
        assert!(verify(&broker, 1)["faults"].to_string().contains(name), "{name}");
        fs::write(&path, bytes).unwrap();
    }
    verify(&broker, 0);
}

#[test]
fn a_directory_in_use_is_not_verified() {
    let mut broker = written();
    broker.restart();
    let mut command = highwater();
    command.args(["log", "verify"]).arg(broker.data());
    let output = run(command);
    check(&output, 2, &["log verify"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("a broker runs in"));
}

#[test]
fn a_cut_end_is_torn_unless_something_says_that_it_was_flushed() {
    for (durability, kind) in [("os", "torn"), ("fsync", "corrupt")] {
        let mut broker = Broker::start();
        broker.good(&["topic", "create", "t", "--config", &format!("durability={durability}")]);
        for round in 0..3 {
            let text: String = (0..1000).map(|number| format!("round {round}, line {number}\n")).collect();
            check(&broker.feed(&["produce", "t"], text.as_bytes()), 0, &["produce"]);
        }
        broker.kill();
        let before = verify(&broker, 0);
        assert_eq!(before["records"], json!(3000));
        let segment = segments(&broker).pop().unwrap();
        let bytes = fs::read(&segment).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        fs::write(&segment, &bytes[..used - 100]).unwrap();
        let report = verify(&broker, 1);
        let fault = &report["faults"][0];
        assert_eq!(fault["kind"], kind, "{durability}: {report}");
        let offset = fault["offset"].as_u64().unwrap();
        assert!((2000..3000).contains(&offset), "{durability}: {report}");

        // What was called torn goes at the next start; what was flushed becomes a hole that the broker tells of.
        broker.restart();
        let state = &broker.json(&["topic", "describe", "t"])["topics"][0]["partition_states"][0];
        let corrupt = if kind == "torn" { json!([]) } else { json!([[offset, 3000]]) };
        assert_eq!(state["corrupt"], corrupt, "{durability}: {state}");
        assert_eq!(state["log_end"], json!(if kind == "torn" { offset } else { 3000 }));
        let back = run(broker.command(&["consume", "t", "--exit-at-end", "--skip-corrupt"]));
        check(&back, i32::from(kind != "torn"), &["consume"]);
        assert_eq!(back.stdout.iter().filter(|byte| **byte == b'\n').count() as u64, offset);
    }
}

/// Every file of a directory, state files and segments alike, in a fixed order.
fn files(directory: &std::path::Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

#[test]
fn sampled_bit_flips_in_every_file_are_found() {
    let broker = written();
    let mut all = Vec::new();
    files(&broker.data(), &mut all);
    // SplitMix64: the same flips every time.
    let mut state = 7_u64;
    let mut random = move |below: u64| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 33) % below
    };
    let (mut flips, mut harmless) = (0, 0);
    let segments = segments(&broker);
    let last_segment = segments.last().unwrap();
    for path in &all {
        let bytes = fs::read(path).unwrap();
        if bytes.is_empty() {
            assert!(path.ends_with("lock"), "{} is empty", path.display());
            continue;
        }
        // The database of the metadata has checksums of its own, over what it holds: free pages may say anything.
        if path.ends_with("controller") {
            continue;
        }
        for _ in 0..20 {
            let bit = random(bytes.len() as u64 * 8);
            let mut flipped = bytes.clone();
            flipped[bit as usize / 8] ^= 1 << (bit % 8);
            fs::write(path, &flipped).unwrap();
            flips += 1;
            // Behind the end of a sealed segment nothing is ever read.
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
            if bit / 8 >= used && path != last_segment && path.extension().is_some_and(|it| it == "segment") {
                verify(&broker, 0);
                harmless += 1;
                continue;
            }
            let report = verify(&broker, 1);
            let file = path.strip_prefix(broker.data()).unwrap().to_str().unwrap();
            let fault = &report["faults"][0];
            assert_eq!(fault["file"], file, "bit {bit} of {file}: {report}");
            let (start, end) = (fault["position"].as_u64().unwrap(), fault["position_end"].as_u64().unwrap());
            assert!((start..end).contains(&(bit / 8)), "bit {bit} of {file}: {fault}");
        }
        fs::write(path, &bytes).unwrap();
    }
    assert!(flips > 200 && harmless < flips / 3, "{flips} flips in {} files, {harmless} harmless", all.len());
    verify(&broker, 0);
}
