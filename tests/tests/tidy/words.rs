//! Words that do not belong into the tree.

use super::tree::{Finding, Tree};

/// Nothing unfinished, nothing switched off.
pub(crate) fn markers(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, code) in tree.sources() {
        for word in ["todo!", "unimplemented!", "dbg!", "#[ignore", "#[should_panic"] {
            for line in code.find(word) {
                findings.push(Finding::new(path, line, format!("`{word}`")));
            }
        }
    }
    // Spelled in two parts so that this file does not find itself. Comments count here.
    let notes = [concat!("FIX", "ME"), concat!("XX", "X"), concat!("TO", "DO")];
    for (path, text) in tree.texts().filter(|(path, _)| !path.ends_with(".lock") && *path != "LICENSE") {
        for (index, line) in text.lines().enumerate() {
            for word in notes.iter().filter(|word| super::code::has_word(line, word)) {
                findings.push(Finding::new(path, index + 1, format!("`{word}`: do it, or open an issue")));
            }
        }
    }
    findings
}

/// Where time itself is meant: the one place that waits for conditions, links that are slow or stand still on purpose, a
/// producer that does not ask again at once, and kills at random moments.
const WAITERS: [&str; 5] = [
    "tests/src/wait.rs",
    "tests/src/proxy.rs",
    "tests/src/workload.rs",
    "tests/tests/crash_kill9.rs",
    "tests/tests/flow_control.rs",
];

/// A test waits for a condition with a deadline, never for time to pass.
pub(crate) fn sleeps_in_tests(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, code) in tree.sources() {
        // On a paused clock a sleep takes no time: it lets everything else go first.
        let virtual_time = tree.text(path).is_some_and(|text| text.contains("start_paused = true"));
        if WAITERS.contains(&path) || virtual_time {
            continue;
        }
        let is_test = path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs");
        let code = if is_test { code } else { code.for_tests() };
        for word in ["thread::sleep", "time::sleep", "sleep_until", "sleep(", "sleep_ms("] {
            for line in code.find(word) {
                findings.push(Finding::new(
                    path,
                    line,
                    "a test that sleeps: wait for a condition with a deadline",
                ));
            }
        }
    }
    findings.dedup();
    findings
}

/// A file is named for the one main type or verb inside.
pub(crate) fn module_names(tree: &Tree) -> Vec<Finding> {
    let vague = ["util", "utils", "common", "impls", "helper", "helpers", "misc", "stuff", "lib2", "base"];
    let mut findings = Vec::new();
    for path in tree.paths().filter(|path| path.ends_with(".rs")) {
        let vague_part = path.trim_end_matches(".rs").split('/').find(|part| vague.contains(part));
        let numbered = path.trim_end_matches(".rs").ends_with('2');
        if vague_part.is_some() || numbered {
            findings.push(Finding::new(path, 0, "say in the name what is inside"));
        }
    }
    findings
}

/// Nothing of the machine on which it was written.
pub(crate) fn places(tree: &Tree) -> Vec<Finding> {
    let words = [concat!("/wo", "rk/"), concat!("/home", "/"), concat!("/ro", "ot/"), concat!("/tmp/", "hw")];
    let mut findings = Vec::new();
    for (path, text) in tree.texts() {
        for (index, line) in text.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| line.contains(**word)) {
                findings.push(Finding::new(path, index + 1, format!("`{word}` is a place of one machine")));
            }
        }
    }
    findings
}
