//! `highwater topic …`.

use serde_json::json;

use crate::harness::{Broker, check, run};

#[test]
fn a_topic_from_creation_to_deletion() {
    let broker = Broker::start();
    assert_eq!(broker.json(&["topic", "list"]), json!({ "topics": [] }));
    let created =
        broker.json(&["topic", "create", "orders", "--partitions", "3", "--config", "durability=os"]);
    assert_eq!((&created["created"], &created["partitions"]), (&json!(true), &json!(3)));
    let id = created["topic_id"].as_str().unwrap();
    assert_eq!(id.len(), 32);

    let listed = broker.json(&["topic", "list"]);
    assert_eq!(listed["topics"][0]["topic"], "orders");
    assert_eq!(listed["topics"][0]["topic_id"], id);

    let described = broker.json(&["topic", "describe", "orders"]);
    let topic = &described["topics"][0];
    assert_eq!(topic["config"]["durability"], json!({ "value": "os", "source": "topic" }));
    assert_eq!(topic["config"]["segment_bytes"]["source"], "default");
    let states = topic["partition_states"].as_array().unwrap();
    assert_eq!(states.len(), 3);
    for (index, state) in states.iter().enumerate() {
        assert_eq!(state["partition"], index);
        assert_eq!((&state["leader"], &state["log_end"]), (&json!(1), &json!(0)));
        assert_eq!((&state["state"], &state["durability"]), (&json!("online"), &json!("os")));
        assert_eq!((&state["error"], &state["corrupt"]), (&json!(null), &json!([])));
    }

    let altered =
        broker.json(&["topic", "alter", "orders", "--config", "retention_bytes=1GiB", "--partitions", "5"]);
    assert_eq!((&altered["altered"], &altered["partitions"]), (&json!(true), &json!(5)));
    broker.good(&["topic", "alter", "orders", "--unset", "retention_bytes"]);
    let topic = &broker.json(&["topic", "describe", "orders"])["topics"][0];
    assert_eq!(
        (&topic["partitions"], &topic["config"]["retention_bytes"]["source"]),
        (&json!(5), &json!("default"))
    );

    assert_eq!(broker.json(&["topic", "delete", "orders"]), json!({ "topic": "orders", "deleted": true }));
    assert_eq!(broker.json(&["topic", "list"]), json!({ "topics": [] }));
}

#[test]
fn tables_for_people() {
    let broker = Broker::start();
    let text = |arguments: &[&str]| String::from_utf8(broker.good(arguments)).unwrap();
    assert!(text(&["topic", "list"]).contains("no topics yet"));
    assert_eq!(text(&["topic", "create", "a"]), "created topic a with 1 partition of 1 replica each\n");
    let list = text(&["topic", "list"]);
    let lines: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["TOPIC", "PARTITIONS", "REPLICATION", "DURABILITY", "CREATED"]);
    assert_eq!(lines[1][..4], ["a", "1", "1", "fsync"]);
    let description = text(&["topic", "describe"]);
    for part in ["topic a (", "SETTING", "HIGH WATERMARK", "online"] {
        assert!(description.contains(part), "{part} is not in: {description}");
    }
}

#[test]
fn no_is_an_answer_and_a_refusal_is_a_failure() {
    let broker = Broker::start();
    broker.good(&["topic", "create", "a"]);
    for (arguments, code, said) in [
        (&["topic", "create", "a"][..], 1, "exists already"),
        (&["topic", "create", "a", "--if-not-exists"], 0, ""),
        (&["topic", "describe", "b"], 1, "there is no topic b"),
        (&["topic", "alter", "b", "--config", "durability=os"], 1, "there is no topic b"),
        (&["topic", "delete", "b"], 1, "there is no topic b"),
        (&["topic", "delete", "b", "--if-exists"], 0, ""),
        (&["topic", "create", "x/y"], 2, "'/' is reserved"),
        (&["topic", "create", "c", "--config", "durabilty=os"], 2, "did you mean 'durability'"),
        (&["topic", "create", "c", "--config", "durability=maybe"], 2, "fsync, interval(100ms) or os"),
        (&["topic", "create", "c", "--replication", "3"], 2, "replica"),
        (&["topic", "create", "c", "--partitions", "1000000"], 2, "partitions"),
        (&["produce", "b"], 2, "there is no topic b"),
        (&["produce", "a", "--partition", "7"], 2, "no partition 7"),
        (&["consume", "b"], 2, "create it first"),
        (&["consume", "a", "--partition", "7"], 2, "partition 7"),
        (&["bench", "consume", "--topic", "b"], 2, "there is no topic b"),
    ] {
        let output = run(broker.command(arguments));
        check(&output, code, arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(said), "{arguments:?}: '{said}' is not in: {stderr}");
        assert_eq!(stderr.is_empty(), said.is_empty(), "{arguments:?}: {stderr}");
    }
}
