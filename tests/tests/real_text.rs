//! A real text, made from what the machine has, through `highwater produce` and `highwater consume`.
//!
//! 20,000 lines by default; `HIGHWATER_LINES=500000` makes it the full size.
#![cfg(test)]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use highwater_tests::cluster::{self, BrokerProcess, Options};

/// Where texts are, best first: documents and licences of the system, documents of the toolchain, sources of packages.
fn roots() -> Vec<PathBuf> {
    let mut roots: Vec<_> =
        ["/usr/share/doc", "/usr/share/common-licenses", "/usr/share/perl", "/usr/include"]
            .iter()
            .map(PathBuf::from)
            .collect();
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cargo = env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    roots.push(cargo.join("registry/src"));
    roots.push(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned());
    roots
}

fn wanted_lines() -> usize {
    env::var("HIGHWATER_LINES").map_or(20_000, |text| text.parse().expect("HIGHWATER_LINES is a number"))
}

/// All files below `directory`, in the order of their names.
fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && entry.file_name() != "target" && entry.file_name() != ".git" => {
                files(&entry.path(), found);
            }
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
}

/// Lines of the machine's texts as they are, bytes and all, each with the file that it is from.
fn lines() -> Vec<(String, Vec<u8>)> {
    let wanted = wanted_lines();
    let mut lines = Vec::with_capacity(wanted);
    let mut sources = Vec::new();
    for root in roots() {
        files(&root, &mut sources);
    }
    for source in sources {
        let Ok(bytes) = fs::read(&source) else { continue };
        // A text: it ends in a newline and holds no zero byte.
        if bytes.last() != Some(&b'\n') || bytes.contains(&0) {
            continue;
        }
        let name = source.to_string_lossy().replace('\t', " ");
        for line in bytes.strip_suffix(b"\n").unwrap_or(&bytes).split(|byte| *byte == b'\n') {
            lines.push((name.clone(), line.to_vec()));
            if lines.len() == wanted {
                return lines;
            }
        }
    }
    panic!("the machine has only {} of {wanted} lines of text", lines.len());
}

/// Runs `highwater` and returns its standard output, which goes through a file because it may be large.
fn highwater(broker: &BrokerProcess, arguments: &[&str]) -> Vec<u8> {
    let path = broker.scratch().join("output");
    let output = Command::new(cluster::highwater().unwrap())
        .args(["--bootstrap", &broker.bootstrap()])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(fs::File::create(&path).unwrap())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?} ended with {}: {errors}", output.status);
    fs::read(path).unwrap()
}

fn write_file(broker: &BrokerProcess, text: &[u8]) -> String {
    let path = broker.scratch().join("input");
    fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

/// Produces the file and checks what the command says about it.
fn produce(broker: &BrokerProcess, topic: &str, file: &str, count: usize, more: &[&str]) {
    let mut arguments = vec!["--output", "json", "produce", topic, "--file", file];
    arguments.extend(more);
    let report: serde_json::Value = serde_json::from_slice(&highwater(broker, &arguments)).unwrap();
    assert_eq!(report["acknowledged"], count, "{report}");
    assert_eq!((&report["unknown"], &report["failed"]), (&0.into(), &0.into()), "{report}");
    assert_eq!(report["stage"], "flushed", "{report}");
}

/// Where two texts differ first, instead of both texts.
fn assert_same(found: &[u8], expected: &[u8]) {
    if found != expected {
        let at = found.iter().zip(expected).position(|(left, right)| left != right);
        let at = at.unwrap_or(found.len().min(expected.len()));
        let around = |text: &[u8]| {
            String::from_utf8_lossy(&text[at.saturating_sub(80).min(text.len())..(at + 80).min(text.len())])
                .into_owned()
        };
        panic!(
            "{} bytes instead of {}, first difference at {at}:\n{:?}\n{:?}",
            found.len(),
            expected.len(),
            around(found),
            around(expected)
        );
    }
}

#[test]
fn a_text_comes_back_byte_for_byte_from_one_partition() {
    let broker = BrokerProcess::start(Options::default()).unwrap();
    let lines = lines();
    let mut text = Vec::new();
    for (_, line) in &lines {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    let file = write_file(&broker, &text);
    highwater(&broker, &["topic", "create", "text", "--partitions", "1"]);
    produce(&broker, "text", &file, lines.len(), &[]);
    assert_same(&highwater(&broker, &["consume", "text", "--from", "earliest", "--exit-at-end"]), &text);
    println!("{} lines, {} bytes", lines.len(), text.len());
    broker.check_log(&[]).unwrap();
}

#[test]
fn keyed_lines_come_back_from_eight_partitions_in_order_per_key() {
    let broker = BrokerProcess::start(Options::default()).unwrap();
    let lines = lines();
    let mut text = Vec::new();
    let mut expected: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for (name, line) in &lines {
        let start = text.len();
        text.extend_from_slice(name.as_bytes());
        text.push(b'\t');
        text.extend_from_slice(line);
        text.push(b'\n');
        expected.entry(name.clone().into_bytes()).or_default().extend_from_slice(&text[start..]);
    }
    let file = write_file(&broker, &text);
    highwater(&broker, &["topic", "create", "keyed", "--partitions", "8"]);
    produce(&broker, "keyed", &file, lines.len(), &["--key-separator", "\\t"]);
    let (mut found, mut used, mut count) = (BTreeMap::<Vec<u8>, Vec<u8>>::new(), 0, 0);
    for partition in 0..8 {
        let number = partition.to_string();
        let mut arguments = vec!["consume", "keyed", "--from", "earliest", "--exit-at-end"];
        arguments.extend(["--format", "key-value", "--key-separator", "\\t", "--partition", &number]);
        let output = highwater(&broker, &arguments);
        used += usize::from(!output.is_empty());
        let mut keys = BTreeMap::<Vec<u8>, Vec<u8>>::new();
        for line in output.split_inclusive(|byte| *byte == b'\n') {
            let end = line.iter().position(|byte| *byte == b'\t').expect("a key and a separator");
            keys.entry(line[..end].to_vec()).or_default().extend_from_slice(line);
            count += 1;
        }
        for (key, text) in keys {
            assert!(found.insert(key, text).is_none(), "a key is in one partition only");
        }
    }
    assert_eq!(count, lines.len());
    assert_eq!(found.len(), expected.len());
    for (key, text) in &expected {
        assert_same(found.get(key).expect("every key is there"), text);
    }
    assert!(used > 1, "keys are spread over partitions");
    println!("{} lines, {} bytes, {} keys, {used} partitions used", lines.len(), text.len(), expected.len());
    broker.check_log(&[]).unwrap();
}
