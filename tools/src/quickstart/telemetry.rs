//! What this host is doing, from `/proc`, as JSON lines.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::source::Line;

/// Processes in one sample: a host may have very many.
const PROCESSES_MAX: usize = 200;

/// One look at processors, memory, load, network, disks and processes.
pub(crate) fn sample() -> io::Result<Vec<Line>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let time = u64::try_from(now).unwrap_or(u64::MAX);
    let mut lines = Vec::with_capacity(64);
    let mut add = |kind: &str, name: &str, mut fields: Map<String, Value>| {
        fields.insert("time".to_owned(), json!(time));
        fields.insert("kind".to_owned(), json!(kind));
        fields.insert("name".to_owned(), json!(name));
        lines.push(Line {
            key: Some(format!("{kind}/{name}").into_bytes()),
            value: Value::Object(fields).to_string().into_bytes(),
        });
    };
    processors(&fs::read_to_string("/proc/stat")?, &mut add);
    add("memory", "host", memory(&fs::read_to_string("/proc/meminfo")?));
    add("load", "host", load(&fs::read_to_string("/proc/loadavg")?));
    // A host may lack either; the rest is input enough.
    network(&fs::read_to_string("/proc/net/dev").unwrap_or_default(), &mut add);
    disks(&fs::read_to_string("/proc/diskstats").unwrap_or_default(), &mut add);
    processes(Path::new("/proc"), &mut add)?;
    Ok(lines)
}

fn numbers(names: &[&str], values: impl Iterator<Item = u64>) -> Map<String, Value> {
    names.iter().zip(values).map(|(name, value)| ((*name).to_owned(), json!(value))).collect()
}

/// `cpu0 user nice system …`, in ticks since the start of the host.
fn processors(text: &str, add: &mut impl FnMut(&str, &str, Map<String, Value>)) {
    const NAMES: [&str; 8] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];
    for line in text.lines().take_while(|line| line.starts_with("cpu")) {
        let mut words = line.split_ascii_whitespace();
        if let Some(name) = words.next() {
            add("cpu", name, numbers(&NAMES, words.map_while(|word| word.parse().ok())));
        }
    }
}

/// `MemTotal: 123 kB`, some of them.
fn memory(text: &str) -> Map<String, Value> {
    let wanted = ["MemTotal", "MemFree", "MemAvailable", "Buffers", "Cached", "Dirty", "Writeback"];
    text.lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            let kib: u64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
            wanted.contains(&name).then(|| (format!("{}_kib", name.to_lowercase()), json!(kib)))
        })
        .collect()
}

/// `0.10 0.20 0.30 1/234 5678`.
fn load(text: &str) -> Map<String, Value> {
    let names = ["one_minute", "five_minutes", "fifteen_minutes"];
    let values = text.split_ascii_whitespace().map_while(|word| word.parse::<f64>().ok());
    names.iter().zip(values).map(|(name, value)| ((*name).to_owned(), json!(value))).collect()
}

/// `eth0: bytes packets errs drop … bytes packets errs drop …`.
fn network(text: &str, add: &mut impl FnMut(&str, &str, Map<String, Value>)) {
    for line in text.lines().skip(2) {
        let Some((name, rest)) = line.split_once(':') else { continue };
        let all: Vec<u64> = rest.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect();
        if let [received, received_packets, _, _, _, _, _, _, sent, sent_packets, ..] = all[..] {
            let names = ["received_bytes", "received_packets", "sent_bytes", "sent_packets"];
            let values = [received, received_packets, sent, sent_packets];
            add("network", name.trim(), numbers(&names, values.into_iter()));
        }
    }
}

/// `major minor name reads merged sectors ms writes merged sectors ms …`.
fn disks(text: &str, add: &mut impl FnMut(&str, &str, Map<String, Value>)) {
    const NAMES: [&str; 8] = [
        "reads",
        "reads_merged",
        "sectors_read",
        "reading_ms",
        "writes",
        "writes_merged",
        "sectors_written",
        "writing_ms",
    ];
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace().skip(2);
        let Some(name) = words.next() else { continue };
        let fields = numbers(&NAMES, words.map_while(|word| word.parse().ok()));
        // Loop and RAM devices that nothing uses say nothing.
        if fields.get("reads") != Some(&json!(0)) {
            add("disk", name, fields);
        }
    }
}

fn processes(proc: &Path, add: &mut impl FnMut(&str, &str, Map<String, Value>)) -> io::Result<()> {
    let pids = fs::read_dir(proc)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    for pid in pids.take(PROCESSES_MAX) {
        // A process may end while it is looked at.
        if let Some(fields) =
            fs::read_to_string(proc.join(&pid).join("stat")).ok().as_deref().and_then(process)
        {
            add("process", &pid, fields);
        }
    }
    Ok(())
}

/// `pid (command) state ppid …`; the command may have blanks and parentheses.
fn process(text: &str) -> Option<Map<String, Value>> {
    let (head, rest) = text.rsplit_once(')')?;
    let (_, command) = head.split_once('(')?;
    let words: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |index: usize| words.get(index).and_then(|word| word.parse::<u64>().ok());
    // Fields 14, 15, 20 and 24 of proc(5); the first word here is field 3.
    let fields = json!({
        "command": command,
        "state": words.first()?,
        "user_ticks": number(11)?,
        "system_ticks": number(12)?,
        "threads": number(17)?,
        "resident_pages": number(21)?,
    });
    match fields {
        Value::Object(fields) => Some(fields),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_parentheses_and_blanks() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 64 1 2 3 4 50 60 0 0 20 0 9 0 100 200 300 400";
        let fields = process(text).unwrap();
        assert_eq!(fields["command"], json!("a) b (c"));
        assert_eq!((&fields["user_ticks"], &fields["system_ticks"]), (&json!(50), &json!(60)));
        assert_eq!((&fields["threads"], &fields["resident_pages"]), (&json!(9), &json!(300)));
        assert_eq!(process("nonsense"), None);
    }

    #[test]
    fn this_host_says_something() {
        let lines = sample().unwrap();
        for kind in ["cpu/cpu", "memory/host", "load/host", "process/"] {
            let found = lines
                .iter()
                .any(|line| line.key.as_deref().is_some_and(|key| key.starts_with(kind.as_bytes())));
            assert!(found, "{kind} is missing");
        }
        for line in &lines {
            let value: Value = serde_json::from_slice(&line.value).unwrap();
            assert!(value["time"].is_u64() && value["kind"].is_string(), "{value}");
        }
    }
}
