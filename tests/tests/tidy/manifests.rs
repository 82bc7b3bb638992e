//! What the manifests promise: edges, pure crates, the given packages, shared versions and lints.

use std::collections::BTreeSet;

use toml::{Table, Value};

use super::tree::{Finding, Tree};

/// Package folder → which of our own packages it may depend on.
const EDGES: [(&str, &[&str]); 7] = [
    ("protocol", &[]),
    ("broker/core", &["highwater-protocol"]),
    ("broker", &["highwater-broker-core", "highwater-protocol", "highwater-client"]),
    ("client", &["highwater-protocol"]),
    ("tools", &["highwater-client", "highwater-protocol", "highwater-broker", "highwater-broker-core"]),
    (
        "benches",
        &[
            "highwater-client",
            "highwater-protocol",
            "highwater-broker",
            "highwater-broker-core",
            "highwater-tests",
        ],
    ),
    ("tests", &["highwater-client", "highwater-protocol", "highwater-broker", "highwater-broker-core"]),
];

/// Package → where it must be a direct dependency, and used.
const GIVEN: [(&str, &[&str]); 9] = [
    ("tokio", &["broker", "client", "tools"]),
    ("tokio-util", &["broker", "client"]),
    ("bytes", &["protocol", "broker", "client"]),
    ("memmap2", &["broker"]),
    ("crc32fast", &["protocol", "broker/core"]),
    ("serde", &["broker", "tools"]),
    ("clap", &["tools"]),
    ("tracing", &["broker", "client"]),
    ("hdrhistogram", &["tools"]),
];

/// All that the pure crates may depend on.
const PURE: [(&str, &[&str]); 2] = [
    ("protocol", &["bytes", "crc32fast", "lz4_flex", "prost", "serde", "thiserror", "xxhash-rust", "zstd"]),
    (
        "broker/core",
        &[
            "bytes",
            "crc32fast",
            "highwater-protocol",
            "humantime",
            "rmp-serde",
            "serde",
            "thiserror",
            "xxhash-rust",
        ],
    ),
];

/// The names under these tables of a manifest, targets included.
fn dependencies(manifest: &Table, kinds: &[&str]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut tables = vec![manifest];
    let targets = manifest.get("target").and_then(Value::as_table);
    tables.extend(targets.into_iter().flat_map(Table::values).filter_map(Value::as_table));
    for table in tables {
        for kind in kinds {
            let found = table.get(*kind).and_then(Value::as_table);
            names.extend(found.into_iter().flat_map(Table::keys).cloned());
        }
    }
    names
}

fn manifest_of(folder: &str) -> String {
    format!("{folder}/Cargo.toml")
}

/// Which of our packages depends on which.
pub(crate) fn edges(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (folder, manifest) in tree.packages().filter(|(folder, _)| !folder.contains("/fuzz")) {
        let path = manifest_of(folder);
        let Some((_, allowed)) = EDGES.iter().find(|(known, _)| *known == folder) else {
            findings.push(Finding::new(&path, 0, "a package that the layout does not know"));
            continue;
        };
        for name in dependencies(&manifest, &["dependencies", "dev-dependencies", "build-dependencies"]) {
            if name.starts_with("highwater") && !allowed.contains(&name.as_str()) {
                findings.push(Finding::new(&path, 0, format!("{folder} may not depend on {name}")));
            }
        }
    }
    findings
}

/// The nine given packages are direct dependencies where they belong, and are used there.
pub(crate) fn given_packages(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (package, folders) in GIVEN {
        for folder in folders {
            let path = manifest_of(folder);
            let Some(manifest) = tree.table(&path) else { continue };
            if !dependencies(&manifest, &["dependencies"]).contains(package) {
                findings.push(Finding::new(&path, 0, format!("{package} is not a direct dependency")));
                continue;
            }
            let word = format!("{}::", package.replace('-', "_"));
            let sources = format!("{folder}/src/");
            let used = tree.sources_in(&[&sources]).any(|(_, code)| code.find(&word).next().is_some());
            if !used {
                findings.push(Finding::new(&path, 0, format!("{package} is declared but not used")));
            }
        }
    }
    findings
}

/// AI-1 by manifest: what is not there cannot be called.
pub(crate) fn pure_manifests(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (folder, allowed) in PURE {
        let path = manifest_of(folder);
        let Some(manifest) = tree.table(&path) else { continue };
        for name in dependencies(&manifest, &["dependencies", "build-dependencies"]) {
            if !allowed.contains(&name.as_str()) {
                findings.push(Finding::new(
                    &path,
                    0,
                    format!("{name} is not on the list of the pure crates"),
                ));
            }
        }
    }
    findings
}

/// Versions come from the workspace, and so do lints, edition and licence.
pub(crate) fn workspace_settings(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let inherits = |table: Option<&Value>| {
        table.and_then(|value| value.get("workspace")).and_then(Value::as_bool).unwrap_or(false)
    };
    for (folder, manifest) in tree.packages().filter(|(folder, _)| !folder.contains("/fuzz")) {
        let path = manifest_of(folder);
        if !inherits(manifest.get("lints")) {
            findings.push(Finding::new(&path, 0, "lints are not those of the workspace"));
        }
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            if !inherits(manifest.get("package").and_then(|package| package.get(key))) {
                findings.push(Finding::new(&path, 0, format!("{key} is not that of the workspace")));
            }
        }
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (name, value) in manifest.get(kind).and_then(Value::as_table).into_iter().flatten() {
                if !inherits(Some(value)) && value.get("path").is_none() {
                    findings.push(Finding::new(
                        &path,
                        0,
                        format!("{name} does not take its version from the workspace"),
                    ));
                }
            }
        }
    }
    findings
}

fn bans(clippy: &Table) -> BTreeSet<String> {
    let methods = clippy.get("disallowed-methods").and_then(Value::as_array);
    let path = |entry: &Value| entry.get("path").and_then(Value::as_str).map(str::to_owned);
    methods.into_iter().flatten().filter_map(path).collect()
}

/// Clippy reads the nearest of its files and does not merge them: the stricter ones repeat the root's.
pub(crate) fn clippy_files(tree: &Tree) -> Vec<Finding> {
    let Some(root) = tree.table("clippy.toml") else {
        return vec![Finding::new("clippy.toml", 0, "is missing")];
    };
    let mut findings = Vec::new();
    for path in ["protocol/clippy.toml", "broker/core/clippy.toml"] {
        let Some(stricter) = tree.table(path) else {
            findings.push(Finding::new(path, 0, "is missing"));
            continue;
        };
        for ban in bans(&root).difference(&bans(&stricter)) {
            findings.push(Finding::new(path, 0, format!("does not repeat the ban of {ban}")));
        }
        for (key, value) in root.iter().filter(|(key, _)| key.starts_with("allow-")) {
            if stricter.get(key) != Some(value) {
                findings.push(Finding::new(path, 0, format!("{key} differs from the root's")));
            }
        }
        if !bans(&stricter).contains("std::time::Instant::now") {
            findings.push(Finding::new(path, 0, "does not ban the clock"));
        }
    }
    findings
}
