//! Reads the manifests and the tree, and fails when a rule of ARCHITECTURE.md or CONTRIBUTING.md is broken.
//!
//! Every check is a function from a tree to what it finds. `the_tree_is_tidy` runs all of them on this tree;
//! `every_check_can_fail` runs each on a tree that breaks its rule, and on one that comes close without breaking it.
#![cfg(test)]

mod architecture;
mod bad_trees;
mod code;
mod manifests;
mod sizes;
mod tree;
mod words;

use tree::{Finding, Tree};

/// A check under its name.
pub(crate) type Check = (&'static str, fn(&Tree) -> Vec<Finding>);

pub(crate) const CHECKS: &[Check] = &[
    ("AI-1 pure crates", architecture::pure_crates),
    ("AI-2 files", architecture::files),
    ("AI-2 sockets", architecture::sockets),
    ("AI-3 openraft", architecture::openraft),
    ("AI-4 api without decisions", architecture::api_without_decisions),
    ("AI-5 one owner", architecture::one_owner),
    ("AI-6 data plane without raft", architecture::data_plane_without_raft),
    ("AI-7 client and broker", architecture::client_and_broker),
    ("AI-8 nothing global", architecture::nothing_global),
    ("unsafe", architecture::unsafe_code),
    ("bounded channels", architecture::bounded_channels),
    ("dependency edges", manifests::edges),
    ("given packages", manifests::given_packages),
    ("pure manifests", manifests::pure_manifests),
    ("workspace settings", manifests::workspace_settings),
    ("clippy files", manifests::clippy_files),
    ("file sizes", sizes::files),
    ("function sizes", sizes::functions),
    ("markers", words::markers),
    ("sleeps in tests", words::sleeps_in_tests),
    ("module names", words::module_names),
    ("places of this machine", words::places),
];

#[test]
fn the_tree_is_tidy() {
    let tree = Tree::of_the_workspace();
    let mut report = String::new();
    for (name, check) in CHECKS {
        for finding in check(&tree) {
            report.push_str(&format!("{}:{}: {name}: {}\n", finding.path, finding.line, finding.what));
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

#[test]
fn the_tree_is_read_at_all() {
    let tree = Tree::of_the_workspace();
    for path in [
        "Cargo.toml",
        "protocol/src/frame.rs",
        "broker/core/Cargo.toml",
        "tests/tests/tidy/main.rs",
        ".ci/run",
    ] {
        assert!(tree.text(path).is_some(), "{path}");
    }
    assert!(tree.sources().count() > 100);
    assert!(!tree.paths().any(|path| path.starts_with("target/") || path.starts_with(".git/")));
}

#[test]
fn every_check_can_fail() {
    for (name, check) in CHECKS {
        let cases = bad_trees::of(name);
        assert!(!cases.is_empty(), "no bad tree for {name}");
        for (why, tree) in cases {
            assert!(!check(&tree).is_empty(), "{name} does not notice: {why}");
        }
        let near = check(&bad_trees::near_misses());
        assert!(near.is_empty(), "{name} complains of what is allowed: {near:?}");
    }
}
