//! `highwater produce` and `highwater consume`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::harness::{Broker, Running, check, run, wait_for};

/// Lines of bytes of all kinds: empty, not UTF-8, with carriage returns and zeroes, and one of 100 KB.
fn awkward_text(lines: usize) -> Vec<u8> {
    let mut text = Vec::new();
    for number in 0..lines {
        match number % 7 {
            0 => {}
            1 => text.extend_from_slice(&[0xff, 0xfe, 0x00, 0x80]),
            2 => text.extend_from_slice(b"\ttab \x1b[31m and carriage return\r"),
            3 => text.extend_from_slice("größer → ∞".as_bytes()),
            4 if number == 4 => text.extend(std::iter::repeat_n(b'x', 100_000)),
            _ => text.extend_from_slice(format!("line {number} of some text").as_bytes()),
        }
        text.push(b'\n');
    }
    text
}

#[test]
fn a_file_comes_back_byte_for_byte() {
    let broker = Broker::start();
    let text = awkward_text(50_000);
    let file = broker.directory.path().join("text");
    fs::write(&file, &text).unwrap();
    for (topic, compression) in [("plain", "none"), ("packed", "lz4")] {
        broker.good(&["topic", "create", topic]);
        let file = file.to_str().unwrap();
        let report = broker.json(&["produce", topic, "--file", file, "--compression", compression]);
        assert_eq!(report["acknowledged"], 50_000);
        assert_eq!((&report["unknown"], &report["failed"]), (&json!(0), &json!(0)));
        assert_eq!(report["stage"], "flushed");
        assert!(report["seconds"].as_f64().unwrap() > 0.0);
        let back = broker.good(&["consume", topic, "--exit-at-end"]);
        assert!(back == text, "{topic}: {} bytes in, {} out", text.len(), back.len());
    }
}

#[test]
fn eight_partitions_with_keys_keep_every_key_in_order() {
    let broker = Broker::start();
    broker.good(&["topic", "create", "keyed", "--partitions", "8"]);
    let key = |number: usize| format!("k{}", number % 97);
    let text: String = (0..30_000).map(|number| format!("{}=value {number}\n", key(number))).collect();
    let output = broker.feed(&["produce", "keyed", "--key-separator", "="], text.as_bytes());
    check(&output, 0, &["produce"]);
    let by_key = |lines: &str| {
        let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in lines.lines() {
            let (key, value) = line.split_once('=').unwrap();
            keys.entry(key.to_owned()).or_default().push(value.to_owned());
        }
        keys
    };
    let consume = ["consume", "keyed", "--exit-at-end", "--format", "key-value", "--key-separator", "="];
    let back = String::from_utf8(broker.good(&consume)).unwrap();
    assert_eq!(by_key(&back), by_key(&text));
    let mut partitions = 0;
    for partition in 0..8 {
        let number = partition.to_string();
        let one = broker.good(&[&consume[..], &["--partition", &number]].concat());
        partitions += usize::from(!one.is_empty());
    }
    assert!(partitions > 4, "97 keys are in {partitions} of 8 partitions only");
}

#[test]
fn json_says_everything_about_a_record() {
    let broker = Broker::start();
    broker.good(&["topic", "create", "t"]);
    let output = broker
        .feed(&["produce", "t", "--key-separator", ":"], b"key:text \"quoted\"\nno key\n\xff:\x00\xfe\n");
    check(&output, 0, &["produce"]);
    let text = broker.good(&["consume", "t", "--exit-at-end", "--format", "json"]);
    let records: Vec<Value> = text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!(records.len(), 3);
    for (offset, record) in records.iter().enumerate() {
        assert_eq!((&record["partition"], &record["offset"]), (&json!(0), &json!(offset)));
        assert!(record["timestamp"].as_i64().unwrap() > 1_600_000_000_000);
        assert_eq!(record["headers"], json!([]));
    }
    assert_eq!((&records[0]["key"], &records[0]["value"]), (&json!("key"), &json!("text \"quoted\"")));
    assert_eq!((&records[1]["key"], &records[1]["value"]), (&json!(null), &json!("no key")));
    assert_eq!((&records[2]["key_base64"], &records[2]["value_base64"]), (&json!("/w=="), &json!("AP4=")));
}

#[test]
fn consume_starts_and_stops_where_it_is_told_to() {
    let broker = Broker::start();
    broker.good(&["topic", "create", "t"]);
    let empty = broker.good(&["consume", "t", "--exit-at-end"]);
    assert!(empty.is_empty());
    let text: String = (0..100).map(|number| format!("{number}\n")).collect();
    check(&broker.feed(&["produce", "t"], text.as_bytes()), 0, &["produce"]);
    let consume = |arguments: &[&str]| {
        String::from_utf8(broker.good(&[&["consume", "t"], arguments].concat())).unwrap()
    };
    assert_eq!(consume(&["--exit-at-end"]), text);
    assert_eq!(consume(&["--from", "97", "--exit-at-end"]), "97\n98\n99\n");
    assert_eq!(consume(&["--from", "5", "--count", "2"]), "5\n6\n");
    assert_eq!(consume(&["--from", "latest", "--exit-at-end"]), "");
    assert_eq!(consume(&["--from", "@2000-01-01T00:00:00Z", "--count", "1"]), "0\n");
    assert_eq!(consume(&["--from", "@4000000000000", "--exit-at-end"]), "");
    assert_eq!(consume(&["--count", "0"]), "");
    let output = run(broker.command(&["consume", "t", "--from", "1000", "--count", "1"]));
    check(&output, 2, &["an offset that is not there"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("offset"));
}

#[test]
fn consume_follows_and_ends_well_on_ctrl_c_and_on_a_closed_pipe() {
    let broker = Broker::start();
    broker.good(&["topic", "create", "t"]);
    let mut following = Running::start(broker.command(&["consume", "t"]));
    let mut lines = BufReader::new(following.stdout());
    for number in 0..3 {
        let line = format!("line {number}\n");
        check(&broker.feed(&["produce", "t"], line.as_bytes()), 0, &["produce"]);
        // Each line is there before the next is sent: nothing stays in a buffer.
        let mut read = String::new();
        lines.read_line(&mut read).unwrap();
        assert_eq!(read, line);
    }
    following.signal(rustix::process::Signal::INT);
    check(&following.finish(), 0, &["consume, interrupted"]);

    let text = awkward_text(20_000);
    check(&broker.feed(&["produce", "t"], &text), 0, &["produce"]);
    let mut closed = Running::start(broker.command(&["consume", "t"]));
    let mut pipe = BufReader::new(closed.stdout());
    pipe.read_line(&mut String::new()).unwrap();
    drop(pipe);
    let output = closed.finish();
    check(&output, 0, &["consume into a closed pipe"]);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn consume_goes_on_when_the_broker_comes_back_and_gives_up_when_it_does_not() {
    let mut broker = Broker::start();
    broker.good(&["topic", "create", "t"]);
    let mut following = Running::start(broker.command(&["consume", "t"]));
    let mut lines = BufReader::new(following.stdout());
    for number in 0..3 {
        let line = format!("line {number}\n");
        check(&broker.feed(&["produce", "t"], line.as_bytes()), 0, &["produce"]);
        let mut read = String::new();
        lines.read_line(&mut read).unwrap();
        assert_eq!(read, line);
        broker.kill();
        broker.restart();
    }
    drop(following);

    broker.json(&["bench", "produce", "--create", "--durability", "os", "--records", "60000"]);
    let mut stuck = Running::start(broker.command(&["consume", "bench", "--exit-at-end", "--timeout", "1s"]));
    let mut pipe = stuck.stdout();
    pipe.read_exact(&mut [0]).unwrap();
    // 60 MB are more than all buffers on the way hold, so not everything can have come.
    broker.kill();
    pipe.read_to_end(&mut Vec::new()).unwrap();
    let output = stuck.finish();
    check(&output, 2, &["consume without a broker"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("nothing came for 1s"));
}

#[test]
fn produce_sends_what_trickles_in_and_ends_well_on_ctrl_c() {
    let broker = Broker::start();
    broker.good(&["topic", "create", "t"]);
    let mut command = broker.command(&["produce", "t", "--output", "json"]);
    command.stdin(Stdio::piped());
    let mut producing = Running::start(command);
    let mut input = producing.stdin();
    for number in 0..3_u64 {
        input.write_all(b"a line\n").unwrap();
        input.flush().unwrap();
        wait_for("the line in the topic", || {
            let described = broker.json(&["topic", "describe", "t"]);
            (described["topics"][0]["partition_states"][0]["high_watermark"] == json!(number + 1))
                .then_some(())
        });
    }
    producing.signal(rustix::process::Signal::INT);
    let output = producing.finish();
    check(&output, 0, &["produce, interrupted"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["acknowledged"], &report["interrupted"]), (&json!(3), &json!(true)));
}

#[test]
fn a_second_ctrl_c_ends_a_command_that_waits() {
    let mut broker = Broker::start();
    broker.json(&["bench", "produce", "--create", "--durability", "os", "--records", "60000"]);
    // Nobody reads what it prints after the first byte, so it cannot end in order.
    let mut consuming = Running::start(broker.command(&["consume", "bench"]));
    let mut pipe = consuming.stdout();
    pipe.read_exact(&mut [0]).unwrap();
    let mut command = broker.command(&["produce", "bench"]);
    command.stdin(Stdio::piped());
    let mut producing = Running::start(command);
    producing.stdin().write_all(b"a line\n").unwrap();
    wait_for("the line in the topic", || {
        let described = broker.json(&["topic", "describe", "bench"]);
        (described["topics"][0]["partition_states"][0]["high_watermark"] == json!(60_001)).then_some(())
    });
    broker.kill();
    let status = wait_for("the end of consume", || {
        consuming.signal(rustix::process::Signal::INT);
        consuming.ended()
    });
    assert_eq!(status.code(), Some(2));
    check(&producing.finish(), 0, &["produce, at the end of its input"]);
}

#[test]
fn a_line_that_no_batch_holds_is_named_and_left_out() {
    let broker = Broker::start();
    broker.good(&["topic", "create", "t", "--config", "batch_bytes_max=64KiB"]);
    let long = "x".repeat(70_000);
    let text = format!("one\n{long}\nthree\n");
    let output = broker.feed(&["produce", "t", "--output", "json"], text.as_bytes());
    check(&output, 1, &["produce"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["acknowledged"], &report["failed"]), (&json!(2), &json!(1)));
    assert_eq!(report["too_long_lines"], json!([[2, 2]]));
    assert!(String::from_utf8(output.stderr).unwrap().contains("line 2 has 70000 bytes"));
    assert_eq!(broker.good(&["consume", "t", "--exit-at-end"]), b"one\nthree\n");
}

#[test]
fn every_line_is_accounted_for_when_the_broker_is_killed_in_the_middle() {
    let mut broker = Broker::start();
    broker.good(&["topic", "create", "t"]);
    let mut command = broker.command(&["produce", "t", "--output", "json"]);
    command.stdin(Stdio::piped());
    let mut producing = Running::start(command);
    let mut input = producing.stdin();
    let total = 400_000;
    let writer = std::thread::spawn(move || {
        for number in 0..total {
            input.write_all(format!("{number}\n").as_bytes()).unwrap();
        }
    });
    wait_for("some records", || {
        let described = broker.json(&["topic", "describe", "t"]);
        let watermark = described["topics"][0]["partition_states"][0]["high_watermark"].as_u64()?;
        (watermark > 0).then_some(())
    });
    broker.kill();
    broker.restart();
    writer.join().unwrap();
    let output = producing.finish();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |name: &str| report[name].as_u64().unwrap();
    assert_eq!(number("acknowledged") + number("unknown") + number("failed"), total);
    check(&output, i32::from(number("acknowledged") != total), &["produce through a crash"]);

    let in_ranges = |name: &str, line: u64| {
        let ranges: Vec<(u64, u64)> = serde_json::from_value(report[name].clone()).unwrap();
        ranges.iter().any(|(first, last)| (*first..=*last).contains(&line))
    };
    let back = String::from_utf8(broker.good(&["consume", "t", "--exit-at-end"])).unwrap();
    let there: Vec<u64> = back.lines().map(|line| line.parse().unwrap()).collect();
    assert!(there.is_sorted_by(|a, b| a < b), "out of order, or twice there");
    let mut there = there.into_iter().peekable();
    for value in 0..total {
        let found = there.next_if_eq(&value).is_some();
        let line = value + 1;
        if in_ranges("failed_lines", line) {
            assert!(!found, "line {line} failed and is there");
        } else if !in_ranges("unknown_lines", line) {
            assert!(found, "line {line} was acknowledged and is not there");
        }
    }
    assert_eq!(there.next(), None);
}
