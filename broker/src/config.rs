//! The broker's settings: each one a key of the TOML file, an environment variable and a flag, in rising precedence.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use highwater_broker_core::controller::topic_config::{InvalidSetting, TopicConfig};
use highwater_broker_core::group::config::GroupConfig;
use highwater_broker_core::nearest::nearest;
use highwater_protocol::ids::NodeId;
use highwater_protocol::limits::PARTITIONS_MAX;
use serde::Deserialize;

use crate::observe::tracing::LogFormat;

mod cleaner;
mod groups;
mod open_files;
mod units;
mod voters;
pub use cleaner::CleanerConfig;
use open_files::OPEN_FILES_MIN;
pub use open_files::{OPEN_FILES_DEFAULT, open_files_within};
pub use units::{Bytes, Span};
pub use voters::{VoterAddress, Voters};

/// One `NAME=VALUE` of a repeatable flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Before the first `=`.
    pub name: String,
    /// After it.
    pub value: String,
}

impl FromStr for Assignment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, value)) if !name.trim().is_empty() => {
                Ok(Self { name: name.trim().to_owned(), value: value.trim().to_owned() })
            }
            _ => Err(format!("'{text}' is not NAME=VALUE")),
        }
    }
}

/// Settings as they are given. What is absent is taken from the next source, and last from the defaults.
#[derive(Debug, Clone, Default, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The broker's id in its cluster, from 1 [default: 1]
    #[arg(long, env = "HIGHWATER_NODE_ID", value_name = "ID")]
    pub node_id: Option<u32>,
    /// Where clients and brokers connect; port 0 takes a free one [default: 127.0.0.1:9470]
    #[arg(long, env = "HIGHWATER_LISTEN", value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// What clients are told to connect to [default: the address that is listened on]
    #[arg(long, env = "HIGHWATER_ADVERTISE", value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Where health and metrics are served, or `off` [default: 127.0.0.1:9471]
    #[arg(long, env = "HIGHWATER_HTTP", value_name = "HOST:PORT")]
    pub http: Option<String>,
    /// Where the data is kept [default: data]
    #[arg(long, env = "HIGHWATER_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The first brokers of the cluster, one, three or five, the same list for each of them: `1@HOST:PORT,2@HOST:PORT,...`
    /// [default: a cluster of this broker alone]
    #[arg(long, env = "HIGHWATER_VOTERS", value_name = "ID@HOST:PORT,...", conflicts_with = "join")]
    pub voters: Option<Voters>,
    /// A broker of the cluster to join, instead of `voters`
    #[arg(long, env = "HIGHWATER_JOIN", value_name = "HOST:PORT")]
    pub join: Option<String>,
    /// What the brokers of the cluster share, so that nobody else passes for one of them [default: nothing]
    #[arg(long, env = "HIGHWATER_CLUSTER_SECRET", value_name = "TEXT", hide_env_values = true)]
    pub cluster_secret: Option<String>,
    /// How long the controller waits for a broker that is not heard of before others lead in its place; the setting of the
    /// broker that is the controller counts [default: 2s]
    #[arg(long, env = "HIGHWATER_LEASE", value_name = "TIME")]
    pub lease: Option<Span>,
    /// How often every stored byte is read and compared with its checksum [default: 1h]
    #[arg(long, env = "HIGHWATER_SCRUB_INTERVAL", value_name = "TIME")]
    pub scrub_interval: Option<Span>,
    /// Bytes that compaction may read and write in a second [default: 64MiB]
    #[arg(long, env = "HIGHWATER_CLEANER_RATE", value_name = "BYTES")]
    pub cleaner_rate: Option<Bytes>,
    /// Memory for the keys of a log that is compacted [default: 32MiB]
    #[arg(long, env = "HIGHWATER_CLEANER_MEMORY", value_name = "BYTES")]
    pub cleaner_memory: Option<Bytes>,
    /// The failure domain that the broker is in
    #[arg(long, env = "HIGHWATER_RACK", value_name = "NAME")]
    pub rack: Option<String>,
    /// Threads that serve connections and partitions [default: 1 on up to 2 cores, else half the cores]
    #[arg(long, env = "HIGHWATER_WORKER_THREADS", value_name = "N")]
    pub worker_threads: Option<usize>,
    /// Write the bound addresses to this file, as JSON, once the broker is ready
    #[arg(long, env = "HIGHWATER_PORT_FILE", value_name = "FILE")]
    pub port_file: Option<PathBuf>,
    /// How log lines look [default: text]
    #[arg(long, env = "HIGHWATER_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Which log lines are written: a level, or targets with levels [default: info]
    #[arg(long, env = "HIGHWATER_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// Connections that are accepted at once [default: 10000]
    #[arg(long, env = "HIGHWATER_CONNECTIONS_MAX", value_name = "N")]
    pub connections_max: Option<usize>,
    /// Requests of one connection that may be unanswered [default: 1024]
    #[arg(long, env = "HIGHWATER_IN_FLIGHT_MAX", value_name = "N")]
    pub in_flight_max: Option<u32>,
    /// Subscriptions of one connection [default: 10000]
    #[arg(long, env = "HIGHWATER_SUBSCRIPTIONS_MAX", value_name = "N")]
    pub subscriptions_max: Option<usize>,
    /// Bytes of batches that one connection may have sent and not seen appended [default: 8MiB]
    #[arg(long, env = "HIGHWATER_PRODUCE_WINDOW", value_name = "BYTES")]
    pub produce_window: Option<Bytes>,
    /// Bytes of batches that all connections together may have sent and not seen appended [default: 256MiB]
    #[arg(long, env = "HIGHWATER_PRODUCE_BUDGET", value_name = "BYTES")]
    pub produce_budget: Option<Bytes>,
    /// How long a new connection has for its handshake [default: 10s]
    #[arg(long, env = "HIGHWATER_HANDSHAKE_TIMEOUT", value_name = "TIME")]
    pub handshake_timeout: Option<Span>,
    /// Silence after which a connection is closed [default: 5m]
    #[arg(long, env = "HIGHWATER_IDLE_TIMEOUT", value_name = "TIME")]
    pub idle_timeout: Option<Span>,
    /// How long a broker that is asked to stop waits for what is under way [default: 20s]
    #[arg(long, env = "HIGHWATER_DRAIN_TIMEOUT", value_name = "TIME")]
    pub drain_timeout: Option<Span>,
    /// Free disk space below which the broker turns read-only [default: 256MiB]
    #[arg(long, env = "HIGHWATER_DISK_RESERVE", value_name = "BYTES")]
    pub disk_reserve: Option<Bytes>,
    /// Files of logs that are kept open [default: what connections leave of the descriptors that the process may have, half
    /// of them at the least, 32768 at most]
    #[arg(long, env = "HIGHWATER_OPEN_FILES_MAX", value_name = "N")]
    pub open_files_max: Option<usize>,
    /// Memory for the ends of logs that are being followed [default: 64MiB]
    #[arg(long, env = "HIGHWATER_TAIL_MEMORY", value_name = "BYTES")]
    pub tail_memory: Option<Bytes>,
    /// Partitions of a topic that does not say [default: 1]
    #[arg(long, env = "HIGHWATER_DEFAULT_PARTITIONS", value_name = "N")]
    pub default_partitions: Option<u32>,
    /// Partitions of the internal topic that holds the state of consumer groups: over as many brokers the coordinators are
    /// spread. Counts when the first group asks for its coordinator, and is fixed from then on [default: 16]
    #[arg(long, env = "HIGHWATER_GROUPS_PARTITIONS", value_name = "N")]
    pub groups_partitions: Option<u32>,
    /// How long positions are kept that no member of the group is interested in any more; the same on all brokers
    /// [default: 7d]
    #[arg(long, env = "HIGHWATER_GROUPS_OFFSETS_RETENTION", value_name = "TIME")]
    pub groups_offsets_retention: Option<Span>,
    /// Topic settings that hold where a topic does not say: the table `topic_defaults` of the file
    #[arg(skip)]
    pub topic_defaults: BTreeMap<String, String>,
    /// A topic setting that holds where a topic does not say; may be given several times
    #[arg(
        long = "topic-default",
        env = "HIGHWATER_TOPIC_DEFAULTS",
        value_name = "NAME=VALUE",
        value_delimiter = ';'
    )]
    #[serde(skip)]
    pub topic_default: Vec<Assignment>,
}

/// Every key that a configuration file may have.
const KEYS: &[&str] = &[
    "node_id",
    "listen",
    "advertise",
    "http",
    "data_dir",
    "voters",
    "join",
    "cluster_secret",
    "lease",
    "scrub_interval",
    "cleaner_rate",
    "cleaner_memory",
    "rack",
    "worker_threads",
    "port_file",
    "log_format",
    "log",
    "connections_max",
    "in_flight_max",
    "subscriptions_max",
    "produce_window",
    "produce_budget",
    "handshake_timeout",
    "idle_timeout",
    "drain_timeout",
    "disk_reserve",
    "open_files_max",
    "tail_memory",
    "default_partitions",
    "groups_partitions",
    "groups_offsets_retention",
    "topic_defaults",
];

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read configuration file {}: {source}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what it should be. The text has line and column.
    #[error("configuration file {}: {}{hint}", .path.display(), .source.to_string().trim_end())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
        /// What may have been meant.
        hint: String,
    },
    /// A value is not allowed.
    #[error("setting '{name}': {problem}")]
    Value {
        /// The key.
        name: &'static str,
        /// What is wrong, and what is allowed.
        problem: String,
    },
    /// A default for topics is not allowed.
    #[error("setting 'topic_defaults': {0}")]
    TopicDefault(#[from] InvalidSetting),
}

impl Settings {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// Names the file, and line and column of what is wrong with it.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::from_toml(&text, path)
    }

    fn from_toml(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|source| {
            let hint = unknown_key(source.message())
                .and_then(|key| nearest(key, KEYS))
                .map_or_else(String::new, |near| format!("\ndid you mean `{near}`?"));
            ConfigError::Parse { path: path.to_owned(), source: Box::new(source), hint }
        })
    }

    /// These settings where they say something, else those of `below`.
    #[must_use]
    pub fn over(mut self, below: Self) -> Self {
        macro_rules! or {
            ($($field:ident),* $(,)?) => { $(self.$field = self.$field.or(below.$field);)* };
        }
        or!(
            node_id,
            listen,
            advertise,
            http,
            data_dir,
            voters,
            join,
            cluster_secret,
            lease,
            scrub_interval,
            cleaner_rate,
            cleaner_memory,
            rack,
            worker_threads,
            port_file,
            log_format,
            log,
            connections_max,
            in_flight_max,
            subscriptions_max,
            produce_window,
            produce_budget,
            handshake_timeout,
            idle_timeout,
            drain_timeout,
            disk_reserve,
            open_files_max,
            tail_memory,
            default_partitions,
            groups_partitions,
            groups_offsets_retention,
        );
        for (name, value) in below.topic_defaults {
            self.topic_defaults.entry(name).or_insert(value);
        }
        let mut assignments = below.topic_default;
        assignments.append(&mut self.topic_default);
        self.topic_default = assignments;
        self
    }
}

/// The key that a message about an unknown one names.
fn unknown_key(message: &str) -> Option<&str> {
    message.strip_prefix("unknown field `")?.split('`').next()
}

/// The settings of one broker, complete and checked.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// See [`Settings::node_id`].
    pub node_id: NodeId,
    /// See [`Settings::listen`]. Names are resolved when it is bound.
    pub listen: String,
    /// See [`Settings::advertise`].
    pub advertise: Option<String>,
    /// See [`Settings::http`]; `None` for `off`.
    pub http: Option<String>,
    /// See [`Settings::data_dir`].
    pub data_dir: PathBuf,
    /// See [`Settings::voters`]; sorted by id, empty if not given.
    pub voters: Vec<VoterAddress>,
    /// See [`Settings::join`].
    pub join: Option<String>,
    /// See [`Settings::cluster_secret`]; empty: none.
    pub cluster_secret: String,
    /// See [`Settings::lease`].
    pub lease: Duration,
    /// See [`Settings::scrub_interval`].
    pub scrub_interval: Duration,
    /// See [`Settings::cleaner_rate`] and [`Settings::cleaner_memory`].
    pub cleaner: CleanerConfig,
    /// See [`Settings::rack`].
    pub rack: String,
    /// See [`Settings::worker_threads`].
    pub worker_threads: usize,
    /// See [`Settings::port_file`].
    pub port_file: Option<PathBuf>,
    /// See [`Settings::log_format`].
    pub log_format: LogFormat,
    /// See [`Settings::log`].
    pub log: String,
    /// See [`Settings::connections_max`].
    pub connections_max: usize,
    /// See [`Settings::in_flight_max`].
    pub in_flight_max: u32,
    /// See [`Settings::subscriptions_max`].
    pub subscriptions_max: usize,
    /// See [`Settings::produce_window`]; bytes.
    pub produce_window: u64,
    /// See [`Settings::produce_budget`]; bytes.
    pub produce_budget: u64,
    /// See [`Settings::handshake_timeout`].
    pub handshake_timeout: Duration,
    /// See [`Settings::idle_timeout`].
    pub idle_timeout: Duration,
    /// See [`Settings::drain_timeout`].
    pub drain_timeout: Duration,
    /// See [`Settings::disk_reserve`]; bytes.
    pub disk_reserve: u64,
    /// See [`Settings::open_files_max`]; `None`: [`OPEN_FILES_DEFAULT`]. The program sets what its process
    /// may open ([`open_files_within`]).
    pub open_files_max: Option<usize>,
    /// See [`Settings::tail_memory`]; bytes.
    pub tail_memory: u64,
    /// See [`Settings::default_partitions`].
    pub default_partitions: u32,
    /// Of it: [`Settings::groups_offsets_retention`].
    pub groups: GroupConfig,
    /// See [`Settings::groups_partitions`].
    pub groups_partitions: u32,
    /// See [`Settings::topic_defaults`].
    pub topic_defaults: TopicConfig,
}

impl Default for Config {
    /// What a broker runs with when nothing is set.
    fn default() -> Self {
        Self {
            node_id: NodeId(1),
            listen: "127.0.0.1:9470".to_owned(),
            advertise: None,
            http: Some("127.0.0.1:9471".to_owned()),
            data_dir: PathBuf::from("data"),
            voters: Vec::new(),
            join: None,
            cluster_secret: String::new(),
            lease: Duration::from_secs(2),
            scrub_interval: Duration::from_secs(3600),
            cleaner: CleanerConfig::default(),
            rack: String::new(),
            worker_threads: default_worker_threads(),
            port_file: None,
            log_format: LogFormat::Text,
            log: "info".to_owned(),
            connections_max: 10_000,
            in_flight_max: 1024,
            subscriptions_max: 10_000,
            produce_window: 8 << 20,
            produce_budget: 256 << 20,
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            drain_timeout: Duration::from_secs(20),
            disk_reserve: 256 << 20,
            open_files_max: None,
            tail_memory: 64 << 20,
            default_partitions: 1,
            groups_partitions: 16,
            groups: GroupConfig::default(),
            topic_defaults: TopicConfig::default(),
        }
    }
}

/// A single thread beats several as long as clients share its cores: a hop between threads costs more than it gains.
fn default_worker_threads() -> usize {
    match std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
        0..=2 => 1,
        cores => cores / 2,
    }
}

impl Config {
    /// The configuration from flags and environment (`given`, which the command line parser has merged) over the file
    /// `file`, if there is one, over the defaults.
    ///
    /// # Errors
    /// Names the file or the setting that is wrong, and what is allowed.
    pub fn load(given: Settings, file: Option<&Path>) -> Result<Self, ConfigError> {
        let settings = match file {
            Some(path) => given.over(Settings::from_file(path)?),
            None => given,
        };
        Self::from_settings(settings)
    }

    /// The configuration that `settings` give over the defaults.
    ///
    /// # Errors
    /// Names the setting that is wrong, and what is allowed.
    pub fn from_settings(settings: Settings) -> Result<Self, ConfigError> {
        let default = Self::default();
        let groups = groups::of(&settings);
        let mut topic_defaults = settings.topic_defaults;
        topic_defaults.extend(settings.topic_default.into_iter().map(|set| (set.name, set.value)));
        let config = Self {
            node_id: settings.node_id.map_or(default.node_id, NodeId),
            listen: settings.listen.unwrap_or(default.listen),
            advertise: settings.advertise,
            http: match settings.http {
                None => default.http,
                Some(off) if off == "off" => None,
                Some(address) => Some(address),
            },
            data_dir: settings.data_dir.unwrap_or(default.data_dir),
            voters: settings.voters.map(|voters| voters.0).unwrap_or_default(),
            join: settings.join,
            cluster_secret: settings.cluster_secret.unwrap_or_default(),
            lease: settings.lease.map_or(default.lease, |span| span.0),
            scrub_interval: settings.scrub_interval.map_or(default.scrub_interval, |span| span.0),
            cleaner: CleanerConfig {
                bytes_per_second: settings
                    .cleaner_rate
                    .map_or(default.cleaner.bytes_per_second, |bytes| bytes.0),
                memory_bytes: settings
                    .cleaner_memory
                    .map_or(default.cleaner.memory_bytes, |bytes| bytes.0 as usize),
            },
            rack: settings.rack.unwrap_or(default.rack),
            worker_threads: settings.worker_threads.unwrap_or(default.worker_threads),
            port_file: settings.port_file,
            log_format: settings.log_format.unwrap_or(default.log_format),
            log: settings.log.unwrap_or(default.log),
            connections_max: settings.connections_max.unwrap_or(default.connections_max),
            in_flight_max: settings.in_flight_max.unwrap_or(default.in_flight_max),
            subscriptions_max: settings.subscriptions_max.unwrap_or(default.subscriptions_max),
            produce_window: settings.produce_window.map_or(default.produce_window, |bytes| bytes.0),
            produce_budget: settings.produce_budget.map_or(default.produce_budget, |bytes| bytes.0),
            handshake_timeout: settings.handshake_timeout.map_or(default.handshake_timeout, |span| span.0),
            idle_timeout: settings.idle_timeout.map_or(default.idle_timeout, |span| span.0),
            drain_timeout: settings.drain_timeout.map_or(default.drain_timeout, |span| span.0),
            disk_reserve: settings.disk_reserve.map_or(default.disk_reserve, |bytes| bytes.0),
            open_files_max: settings.open_files_max,
            tail_memory: settings.tail_memory.map_or(default.tail_memory, |bytes| bytes.0),
            default_partitions: settings.default_partitions.unwrap_or(default.default_partitions),
            groups_partitions: settings.groups_partitions.unwrap_or(default.groups_partitions),
            groups,
            topic_defaults: TopicConfig::with_overrides(&default.topic_defaults, &topic_defaults, u32::MAX)?,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let value = |name, problem: &str| Err(ConfigError::Value { name, problem: problem.to_owned() });
        if self.node_id.0 == 0 {
            return value("node_id", "0 is not an id: ids start at 1");
        }
        let addresses = [
            ("listen", Some(&self.listen)),
            ("advertise", self.advertise.as_ref()),
            ("http", self.http.as_ref()),
            ("join", self.join.as_ref()),
        ];
        for (name, address) in addresses {
            if let Some(address) = address {
                check_address(name, address)?;
            }
        }
        self.check_cluster()?;
        if self.worker_threads == 0 || self.worker_threads > 1024 {
            return value("worker_threads", "must be from 1 to 1024");
        }
        // More than any machine has room for; room is counted in a semaphore, which has its own bound.
        if self.connections_max == 0 || self.connections_max > 10_000_000 {
            return value("connections_max", "must be from 1 to 10000000");
        }
        let positive = [
            ("in_flight_max", u64::from(self.in_flight_max)),
            ("subscriptions_max", self.subscriptions_max as u64),
            ("produce_window", self.produce_window),
            ("produce_budget", self.produce_budget),
        ];
        for (name, number) in positive {
            if number == 0 {
                return value(name, "must be at least 1");
            }
        }
        if self.open_files_max.is_some_and(|files| files < OPEN_FILES_MIN) {
            return value("open_files_max", &format!("must be at least {OPEN_FILES_MIN}"));
        }
        if self.handshake_timeout.is_zero() || self.idle_timeout < Duration::from_secs(1) {
            return value("idle_timeout", "must be at least 1s, and handshake_timeout above 0");
        }
        if self.default_partitions == 0 || self.default_partitions > PARTITIONS_MAX {
            return value("default_partitions", &format!("must be from 1 to {PARTITIONS_MAX}"));
        }
        groups::check(self.groups_partitions, &self.groups)
    }
}

/// An address is `HOST:PORT`; the host is resolved later, where a name server may have to be asked.
fn check_address(name: &'static str, address: &str) -> Result<(), ConfigError> {
    let wrong = || ConfigError::Value { name, problem: format!("'{address}' is not HOST:PORT") };
    if address.parse::<SocketAddr>().is_ok() {
        return Ok(());
    }
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    if host.is_empty() || host.contains(':') || port.parse::<u16>().is_err() {
        return Err(wrong());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
