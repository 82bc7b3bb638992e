//! `highwater group …` and `highwater consume --group`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::{Broker, check, run};

/// A broker with a topic of two partitions that has these lines.
fn with_lines(count: usize) -> (Broker, BTreeSet<String>) {
    let broker = Broker::start();
    broker.good(&["topic", "create", "t", "--partitions", "2"]);
    let lines: Vec<String> = (0..count).map(|number| format!("k{}=line {number}", number % 17)).collect();
    let text = lines.join("\n") + "\n";
    check(&broker.feed(&["produce", "t", "--key-separator", "="], text.as_bytes()), 0, &["produce"]);
    (broker, lines.iter().map(|line| line.split_once('=').unwrap().1.to_owned()).collect())
}

fn consume(broker: &Broker, further: &[&str]) -> Vec<String> {
    let all = [&["consume", "t", "--group", "g", "--exit-at-end"], further].concat();
    String::from_utf8(broker.good(&all)).unwrap().lines().map(str::to_owned).collect()
}

fn position(described: &Value, partition: usize) -> &Value {
    &described["groups"][0]["positions"][partition]
}

#[test]
fn a_group_goes_on_where_it_was_and_can_be_sent_back() {
    let (broker, lines) = with_lines(1000);
    assert_eq!(broker.json(&["group", "list"]), json!({ "groups": [], "complete": true }));
    // In two parts: nothing twice, nothing left out.
    let mut first = consume(&broker, &["--count", "137"]);
    assert_eq!(first.len(), 137);
    let rest = consume(&broker, &[]);
    assert_eq!(rest.len(), 1000 - 137);
    first.extend(rest);
    assert_eq!(first.into_iter().collect::<BTreeSet<_>>(), lines);
    assert!(consume(&broker, &[]).is_empty());

    let listed = broker.json(&["group", "list"]);
    assert_eq!(
        (&listed["groups"][0]["group"], &listed["groups"][0]["state"]),
        (&json!("g"), &json!("empty"))
    );
    let described = broker.json(&["group", "describe", "g"]);
    let group = &described["groups"][0];
    assert_eq!((&group["lag"], &group["members"]), (&json!(0), &json!([])));
    let end = position(&described, 1)["committed"].as_u64().unwrap();
    assert_eq!(position(&described, 1)["high_watermark"], end);

    // First what would change, then the change; a position that is not there is the nearest one.
    let reset = ["group", "reset", "g", "--to", "40"];
    let planned = broker.json(&reset);
    assert_eq!((&planned["executed"], &planned["positions"][1]["after"]), (&json!(false), &json!(40)));
    assert_eq!(
        position(&broker.json(&["group", "describe", "g"]), 1)["committed"],
        end,
        "nothing was changed"
    );
    broker.json(&[&reset[..], &["--execute", "--partition", "1", "--topic", "t"]].concat());
    assert_eq!(consume(&broker, &[]).len() as u64, end - 40);
    let far = broker.json(&["group", "reset", "g", "--to", "999999"]);
    assert_eq!(
        (&far["positions"][1]["after"], &far["positions"][1]["clamped_from"]),
        (&json!(end), &json!(999_999))
    );
    broker.json(&["group", "reset", "g", "--by-duration", "1h", "--execute"]);
    assert_eq!(consume(&broker, &[]).len(), 1000);
    broker.json(&["group", "reset", "g", "--forget", "--execute"]);
    assert_eq!(consume(&broker, &["--from", "latest"]).len(), 0);
    assert_eq!(consume(&broker, &[]).len(), 0, "where it began is recorded");

    assert_eq!(broker.json(&["group", "delete", "g"]), json!({ "group": "g", "deleted": true }));
    assert_eq!(consume(&broker, &[]).len(), 1000);
}

#[test]
fn tables_for_people_and_refusals() {
    let (broker, _) = with_lines(100);
    let text = |arguments: &[&str]| String::from_utf8(broker.good(arguments)).unwrap();
    assert!(text(&["group", "list"]).contains("no groups yet"));
    consume(&broker, &["--count", "10"]);
    assert!(text(&["group", "list"]).starts_with("GROUP"));
    let described = text(&["group", "describe"]);
    for part in
        ["group g: empty, 0 members", "coordinated by broker 1", "90 records behind", "HIGH WATERMARK"]
    {
        assert!(described.contains(part), "{part} is not in: {described}");
    }
    let planned = text(&["group", "reset", "g", "--to", "earliest"]);
    assert!(
        planned.contains("BEFORE") && planned.contains("nothing was changed: --execute does it"),
        "{planned}"
    );
    for (arguments, code, said) in [
        (&["group", "describe", "nobody"][..], 1, "there is no group nobody"),
        (&["group", "delete", "nobody"], 1, "there is no group nobody"),
        (&["group", "delete", "nobody", "--if-exists"], 0, ""),
        (&["group", "reset", "nobody", "--to", "latest"], 1, "there is no group nobody"),
        (&["group", "reset", "g", "--to", "latest", "--topic", "u"], 2, "topic u"),
        (&["group", "describe", "a/b"], 2, "'/' is not allowed"),
        (&["consume", "t", "--group", "a/b"], 2, "'/' is not allowed"),
        (&["consume", "u", "--group", "g"], 2, "create it first"),
    ] {
        let output = run(broker.command(arguments));
        check(&output, code, arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(said), "{arguments:?}: '{said}' is not in: {stderr}");
    }
}

/// A consumer of group `g` that has read and committed what is there.
fn member_that_has_everything(broker: &Broker) -> crate::harness::Running {
    let member = crate::harness::Running::start(broker.command(&["consume", "t", "--group", "g"]));
    crate::harness::wait_for("the member", || {
        let output = run(broker.command(&["group", "describe", "g", "--output", "json"]));
        let described: Value = serde_json::from_slice(&output.stdout).ok()?;
        let group = &described["groups"][0];
        (group["members"].as_array()?.len() == 1 && group["lag"] == 0).then_some(())
    });
    member
}

#[test]
fn a_member_that_is_terminated_leaves_its_group_at_once() {
    let (broker, _) = with_lines(10);
    let member = member_that_has_everything(&broker);
    member.signal(rustix::process::Signal::TERM);
    check(&member.finish(), 0, &["consume, terminated"]);
    // Nobody waits for the end of its session.
    broker.good(&["group", "delete", "g"]);
}

#[test]
fn a_group_with_members_is_left_alone() {
    let (broker, _) = with_lines(10);
    let member = member_that_has_everything(&broker);
    for arguments in
        [&["group", "delete", "g"][..], &["group", "reset", "g", "--to", "earliest", "--execute"]]
    {
        let output = run(broker.command(arguments));
        check(&output, 1, arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("group g") && text.contains("group_not_empty"), "{text}");
    }
    member.signal(rustix::process::Signal::INT);
    let output = member.finish();
    check(&output, 0, &["consume"]);
    assert_eq!(output.stdout.split(|byte| *byte == b'\n').count(), 11);
    broker.good(&["group", "delete", "g"]);
}
