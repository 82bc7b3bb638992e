//! Where a bench ran, and how busy the load generator itself was.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The part of a core from which on a thread of the load generator is said to be what limits the result.
const BUSY: f64 = 0.9;

/// The machine, for reports. What cannot be found out is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
    /// Of this program.
    pub(crate) version: String,
}

impl Machine {
    /// This one.
    pub(crate) fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let processor = field(&read("/proc/cpuinfo"), "model name").unwrap_or_default();
        let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let kibibytes: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
        let build = if cfg!(debug_assertions) { ", not a release build" } else { "" };
        Self {
            processor,
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: kibibytes << 10,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            version: format!(
                "highwater {} (commit {}{build})",
                env!("CARGO_PKG_VERSION"),
                env!("HIGHWATER_COMMIT")
            ),
        }
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        json!({
            "processor": self.processor,
            "cores": self.cores,
            "memory_bytes": self.memory_bytes,
            "kernel": self.kernel,
            "version": self.version,
        })
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        format!(
            "{}; {} x {}, {}, Linux {}",
            self.version,
            self.cores,
            if self.processor.is_empty() { "an unknown processor" } else { &self.processor },
            crate::output::bytes(self.memory_bytes),
            self.kernel
        )
    }
}

fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// How busy the threads of this process are.
#[derive(Debug)]
pub(crate) struct Generator {
    since: Instant,
    threads: BTreeMap<u64, Duration>,
}

/// What the load generator took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Effort {
    /// Cores that all its threads used together.
    pub(crate) cores: f64,
    /// The part of a core that its busiest thread used.
    pub(crate) busiest: f64,
    /// The part of the time that a sender with a schedule waited for the next moment of it. Close to a moment it is waited
    /// for by looking again and again, so a thread that is busy all the time may have nothing to do.
    pub(crate) waiting: Option<f64>,
}

impl Generator {
    /// From now on.
    pub(crate) fn start() -> Self {
        Self { since: Instant::now(), threads: thread_times() }
    }

    /// Until now.
    pub(crate) fn effort(&self) -> Effort {
        let seconds = self.since.elapsed().as_secs_f64().max(1e-9);
        let times = thread_times();
        let used = times.iter().map(|(thread, time)| {
            time.saturating_sub(self.threads.get(thread).copied().unwrap_or_default()).as_secs_f64()
        });
        let (sum, most) = used.fold((0.0, 0.0), |(sum, most): (f64, f64), used| (sum + used, most.max(used)));
        Effort { cores: sum / seconds, busiest: most / seconds, waiting: None }
    }

    /// Until now, while a sender waited this long for its schedule.
    pub(crate) fn effort_with(&self, waited: Option<Duration>) -> Effort {
        let seconds = self.since.elapsed().as_secs_f64().max(1e-9);
        Effort { waiting: waited.map(|waited| waited.as_secs_f64() / seconds), ..self.effort() }
    }
}

impl Effort {
    /// Whether the result says more about the load generator than about the brokers.
    pub(crate) fn is_the_limit(&self) -> bool {
        self.busiest >= BUSY && self.waiting.is_none_or(|waiting| waiting < 1.0 - BUSY)
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        json!({
            "cores": self.cores,
            "busiest_thread": self.busiest,
            "waiting_for_schedule": self.waiting,
            "is_the_limit": self.is_the_limit(),
        })
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let limit = if self.is_the_limit() {
            "; the load generator is at its limit: several of them may reach more"
        } else {
            ""
        };
        let waiting = self.waiting.map_or_else(String::new, |waiting| {
            format!(", {:.0} % of the time waiting for its schedule", waiting * 100.0)
        });
        format!(
            "load generator: {:.2} cores, its busiest thread {:.0} % of one{waiting}{limit}",
            self.cores,
            self.busiest * 100.0
        )
    }
}

/// What each thread of this process has used of the processors.
fn thread_times() -> BTreeMap<u64, Duration> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return BTreeMap::new() };
    let time = |entry: fs::DirEntry| {
        let thread = entry.file_name().to_str()?.parse().ok()?;
        // The first number is the time on a processor, in nanoseconds.
        let text = fs::read_to_string(entry.path().join("schedstat")).ok()?;
        let nanoseconds = text.split_whitespace().next()?.parse().ok()?;
        Some((thread, Duration::from_nanos(nanoseconds)))
    };
    tasks.flatten().filter_map(time).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc_files_are_found() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: another\n";
        assert_eq!(field(text, "model name").as_deref(), Some("Some CPU @ 2 GHz"));
        assert_eq!(field(text, "MemTotal"), None);
        let machine = Machine::here();
        assert!(machine.cores > 0 && machine.memory_bytes > 0 && !machine.kernel.is_empty(), "{machine:?}");
    }

    #[test]
    fn a_busy_thread_is_noticed() {
        let generator = Generator::start();
        let before = thread_times();
        let mut sum = 0_u64;
        // Until it has really run, however busy the machine is.
        while thread_times().values().sum::<Duration>()
            < before.values().sum::<Duration>() + Duration::from_millis(20)
        {
            sum = std::hint::black_box((0..100_000_u64).fold(sum, u64::wrapping_add));
        }
        let effort = generator.effort();
        assert!(effort.busiest > 0.0 && effort.cores >= effort.busiest, "{effort:?}");
        let limit = Effort { cores: 1.5, busiest: BUSY, waiting: None };
        assert!(limit.is_the_limit() && limit.text().contains("at its limit"));
        assert!(!Effort { busiest: BUSY - 0.01, ..limit }.is_the_limit());
        assert!(Effort { waiting: Some(0.0), ..limit }.is_the_limit());
        let early = Effort { waiting: Some(0.5), ..limit };
        assert!(
            !early.is_the_limit() && early.text().contains("50 % of the time waiting"),
            "{}",
            early.text()
        );
    }
}
