use clap::{Args, Command, FromArgMatches};

use super::*;

fn parse(text: &str) -> Result<Settings, ConfigError> {
    Settings::from_toml(text, Path::new("highwater.toml"))
}

fn problem(text: &str) -> String {
    parse(text).and_then(Config::from_settings).unwrap_err().to_string()
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let file = parse("node_id = 7\nlisten = \"0.0.0.0:1\"\nproduce_window = \"1MiB\"\n[topic_defaults]\nsegment_bytes = \"1MiB\"")
        .unwrap();
    let flags = Settings {
        listen: Some("127.0.0.1:2".to_owned()),
        topic_default: vec!["durability=os".parse().unwrap()],
        ..Settings::default()
    };
    let config = Config::from_settings(flags.over(file)).unwrap();
    assert_eq!(config.node_id, NodeId(7));
    assert_eq!(config.listen, "127.0.0.1:2");
    assert_eq!(config.produce_window, 1 << 20);
    assert_eq!(config.topic_defaults.segment_bytes, 1 << 20);
    assert_eq!(config.topic_defaults.get("durability").unwrap(), "os");
    assert_eq!(config.connections_max, Config::default().connections_max);
}

#[test]
fn a_typing_error_names_file_line_key_and_the_nearest_key() {
    let text = problem("node_id = 1\nlisten_on = \"x\"");
    for part in ["highwater.toml", "line 2", "listen_on", "did you mean `listen`?"] {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
    let text = problem("produce_window = \"8MB\"");
    assert!(text.contains("line 1") && text.contains("8MB") && text.contains("64KiB"), "{text}");
    let text = problem("[topic_defaults]\ndurabilty = \"os\"");
    assert!(text.contains("did you mean 'durability'?"), "{text}");
}

#[test]
fn values_out_of_range_name_the_setting() {
    for (text, name) in [
        ("node_id = 0", "node_id"),
        ("listen = \"9470\"", "listen"),
        ("http = \"localhost:http\"", "http"),
        ("advertise = \"::1:9470\"", "advertise"),
        ("worker_threads = 0", "worker_threads"),
        ("connections_max = 0", "connections_max"),
        ("produce_budget = 0", "produce_budget"),
        ("open_files_max = 3", "open_files_max"),
        ("idle_timeout = \"10ms\"", "idle_timeout"),
        ("default_partitions = 0", "default_partitions"),
        ("groups_partitions = 1025", "groups_partitions"),
        ("groups_offsets_retention = \"59s\"", "groups_offsets_retention"),
    ] {
        let message = problem(text);
        assert!(message.contains(&format!("'{name}'")), "{text}: {message}");
    }
    for good in [
        "listen = \"[::1]:0\"",
        "advertise = \"broker-1.internal:9470\"",
        "http = \"off\"",
        "groups_partitions = 1024",
        "groups_offsets_retention = \"60s\"",
    ] {
        parse(good).and_then(Config::from_settings).unwrap();
    }
}

#[test]
fn every_key_of_the_file_is_known_to_hints_and_has_a_flag_and_a_variable() {
    let command = Settings::augment_args(Command::new("broker"));
    for key in KEYS.iter().filter(|key| **key != "topic_defaults") {
        let flag = key.replace('_', "-");
        let argument = command
            .get_arguments()
            .find(|argument| argument.get_long() == Some(&flag))
            .unwrap_or_else(|| panic!("no flag --{flag}"));
        let variable = argument.get_env().unwrap_or_else(|| panic!("no variable for {key}"));
        assert_eq!(variable.to_str().unwrap(), format!("HIGHWATER_{}", key.to_uppercase()));
    }
    let flags = command.get_arguments().filter(|argument| argument.get_long().is_some()).count();
    // --topic-default stands for the table.
    assert_eq!(flags, KEYS.len(), "a setting is missing in KEYS");
    let error = parse("nothing = 1").unwrap_err().to_string();
    for key in KEYS {
        assert!(error.contains(&format!("`{key}`")), "{key} is not a key of the file: {error}");
    }
}

#[test]
fn the_command_line_parses_into_settings() {
    let command = Settings::augment_args(Command::new("broker"));
    let matches = command
        .try_get_matches_from([
            "broker",
            "--node-id",
            "3",
            "--idle-timeout",
            "90s",
            "--topic-default",
            "durability=os",
        ])
        .unwrap();
    let config = Config::from_settings(Settings::from_arg_matches(&matches).unwrap()).unwrap();
    assert_eq!((config.node_id, config.idle_timeout), (NodeId(3), Duration::from_secs(90)));
    assert_eq!(config.topic_defaults.get("durability").unwrap(), "os");
}

#[test]
fn more_connections_than_can_be_counted_are_refused() {
    for number in ["0", "10000001", "9223372036854775807"] {
        let text = problem(&format!("connections_max = {number}"));
        assert!(text.contains("connections_max") && text.contains("from 1 to 10000000"), "{text}");
    }
}
