//! What `--help` says, as it was agreed on, and what wrong command lines get.

use crate::harness::{check, expect, highwater, run};

const COMMANDS: &[&[&str]] = &[
    &[],
    &["broker"],
    &["quickstart"],
    &["topic"],
    &["topic", "create"],
    &["topic", "list"],
    &["topic", "describe"],
    &["topic", "alter"],
    &["topic", "delete"],
    &["produce"],
    &["consume"],
    &["group"],
    &["group", "list"],
    &["group", "describe"],
    &["group", "reset"],
    &["group", "delete"],
    &["cluster"],
    &["cluster", "status"],
    &["cluster", "nodes"],
    &["cluster", "drain"],
    &["cluster", "remove"],
    &["cluster", "rebalance"],
    &["cluster", "throttle"],
    &["cluster", "elect-unclean"],
    &["verify"],
    &["log"],
    &["log", "dump"],
    &["log", "verify"],
    &["bench"],
    &["bench", "produce"],
    &["bench", "consume"],
    &["bench", "latency"],
    &["bench", "failover"],
    &["bench", "fanout"],
    &["bench", "partitions"],
    &["bench", "cold"],
    &["bench", "groups"],
    &["bench", "recovery"],
    &["completions"],
];

#[test]
fn every_help_is_the_golden_one() {
    for command in COMMANDS {
        let mut help = highwater();
        help.args(*command).arg("--help");
        let output = run(help);
        check(&output, 0, command);
        let name = if command.is_empty() { "highwater".to_owned() } else { command.join("-") };
        expect(&format!("help-{name}.txt"), std::str::from_utf8(&output.stdout).unwrap());
    }
}

#[test]
fn every_command_is_in_the_help_of_its_parent() {
    for command in COMMANDS.iter().filter(|command| !command.is_empty()) {
        let (name, parent) = command.split_last().unwrap();
        let mut help = highwater();
        help.args(parent).arg("--help");
        let text = String::from_utf8(run(help).stdout).unwrap();
        assert!(
            text.lines().any(|line| line.trim_start().starts_with(name)),
            "{command:?} is not in: {text}"
        );
    }
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let mut command = highwater();
        command.args(["completions", shell]);
        let output = run(command);
        check(&output, 0, &[shell]);
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(script.contains("quickstart") && script.contains("exit-at-end"), "{shell}");
    }
}

#[test]
fn a_wrong_command_line_ends_with_2_and_says_what_is_right() {
    for (arguments, hint) in [
        (&["consum", "x"][..], "consume"),
        (&["consume", "x", "--from", "yesterday"], "earliest, latest"),
        (&["produce", "x", "--acks", "some"], "leader"),
        (&["bench", "produce", "--batch-bytes", "64KB"], "64KiB"),
        (&["topic", "create", "x", "--config", "durability"], "KEY=VALUE"),
        (&["topic", "alter", "x"], "--config"),
        (&["group", "reset", "g"], "--to"),
        (&["group", "reset", "g", "--to", "latest", "--by-duration", "1h"], "--by-duration"),
        (&["group", "delete"], "<GROUP>"),
        (&["consume", "x", "--group", "g", "--partition", "0"], "--partition"),
        (&["cluster", "drain", "0"], "1.."),
        (&["cluster", "throttle", "50MB"], "50MiB"),
        (&["cluster", "rebalance", "--dry-run", "--cancel"], "--cancel"),
        (&["cluster", "drain", "3", "--wait", "--no-wait"], "--no-wait"),
        (&["cluster", "elect-unclean", "x", "0"], "<NODE>"),
        (&["bench", "produce", "--durability", "os"], "--create"),
        (&["bench", "produce", "--size", "lognormal(1KiB)"], "a median and a factor"),
        (&["bench", "consume", "--size", "15"], "16 bytes at least"),
        (&["bench", "latency", "--keys", "10", "--key-skew", "zipf(0)"], "above 0"),
        (&["bench", "produce", "--key-skew", "uniform"], "--keys"),
        (&["bench", "produce", "--entropy", "9"], "0..=8"),
        (&["bench", "partitions", "--counts", "10,20000"], "1..=10000"),
        (&["bench", "recovery", "--bytes", "1GB"], "1GiB"),
        (&["bench", "latency", "--connections", "257"], "1..=256"),
        #[cfg(not(feature = "zstd"))]
        (&["produce", "x", "--compression", "zstd"], "--features zstd"),
    ] {
        let mut command = highwater();
        command.args(arguments);
        let output = run(command);
        check(&output, 2, arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(hint), "{arguments:?}: {hint} is not in: {text}");
        assert!(output.stdout.is_empty(), "{arguments:?} prints to standard output");
    }
}

#[test]
fn no_broker_is_a_failure_that_says_where_and_what_to_do() {
    // Nothing can listen on port 1 without being root, and nothing does.
    let at = ["--bootstrap", "127.0.0.1:1", "--timeout", "200ms"];
    for arguments in [
        &["topic", "list"][..],
        &["consume", "x"],
        &["produce", "x"],
        &["bench", "consume"],
        &["consume", "x", "--group", "g"],
        &["group", "list"],
        &["cluster", "status"],
        &["cluster", "drain", "3"],
        &["verify", "x"],
    ] {
        let mut command = highwater();
        command.args(arguments).args(at);
        let output = run(command);
        check(&output, 2, arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("127.0.0.1:1") && text.contains("check that a broker runs there"), "{text}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_path_that_is_no_data_directory_is_a_failure() {
    let empty = tempfile::tempdir().unwrap();
    for path in [empty.path().to_str().unwrap(), "/nowhere/at/all"] {
        for verb in ["dump", "verify"] {
            let mut command = highwater();
            command.args(["log", verb, path]);
            let output = run(command);
            check(&output, 2, &["log", verb, path]);
            assert!(String::from_utf8(output.stderr).unwrap().contains(path));
        }
    }
}
