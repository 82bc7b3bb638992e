//! The hot paths, each alone and with the same work every time. `instructions` counts them, the criterion benches time them.

pub mod codec;
pub mod group;
pub mod log;
pub mod placement;
pub mod produce;
pub mod replica;

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, anyhow};

/// Something that can be done again and again.
pub trait Repeat {
    /// Does it `count` times.
    ///
    /// # Errors
    /// When it does not work, or what comes out is wrong.
    fn repeat(&mut self, count: u64) -> Result<()>;
}

/// A path by name.
#[derive(Debug, Clone, Copy)]
pub struct Path {
    /// On the command line and in the baseline.
    pub name: &'static str,
    /// What is done once, for people.
    pub what: &'static str,
    /// How often it is done when instructions are counted: enough for what happens now and then to be spread evenly.
    pub count: u64,
    /// Gets everything ready.
    pub prepare: fn() -> Result<Box<dyn Repeat>>,
}

/// Every path.
pub const ALL: &[Path] = &[
    Path {
        name: "encode",
        what: "64 records of 1,000 bytes into a batch, with its checksums",
        count: 500,
        prepare: codec::encode,
    },
    Path {
        name: "encode-small",
        what: "600 records of 100 bytes into a batch, with its checksums",
        count: 200,
        prepare: codec::encode_small,
    },
    Path {
        name: "check",
        what: "the checksums of a produced batch of 64 KiB",
        count: 2000,
        prepare: codec::check,
    },
    Path {
        name: "decode-small",
        what: "600 records of 100 bytes out of a batch, checksums verified",
        count: 200,
        prepare: codec::decode_small,
    },
    Path {
        name: "append",
        what: "a batch of 64 KiB stamped and appended to a log",
        count: 500,
        prepare: log::append,
    },
    Path {
        name: "read",
        what: "1 MiB planned and read as a slice of the mapped log",
        count: 2000,
        prepare: log::read,
    },
    Path {
        name: "replicate",
        what: "a batch appended, flushed, acknowledged by two followers and committed, by the leader's machine",
        count: 5000,
        prepare: replica::commit,
    },
    Path {
        name: "assign",
        what: "a twelfth member joins a group with 1,000 partitions, which are assigned anew",
        count: 20,
        prepare: group::join,
    },
    Path {
        name: "place",
        what: "1,000 partitions with 3 replicas placed on 12 brokers in 3 racks",
        count: 5,
        prepare: placement::place,
    },
    Path {
        name: "move",
        what: "the smallest plan when one of 12 brokers leaves, 1,000 partitions with 3 replicas",
        count: 5,
        prepare: placement::leave,
    },
    Path {
        name: "produce-4k",
        what: "a batch of 4 KiB on its whole way through the broker",
        count: 1000,
        prepare: || produce::plain(4 << 10),
    },
    Path {
        name: "produce-4k-idempotent",
        what: "the same with an idempotent producer",
        count: 1000,
        prepare: || produce::idempotent(4 << 10),
    },
    Path {
        name: "produce-64k",
        what: "a batch of 64 KiB on its whole way through the broker",
        count: 500,
        prepare: || produce::plain(64 << 10),
    },
    Path {
        name: "produce-64k-idempotent",
        what: "the same with an idempotent producer",
        count: 500,
        prepare: || produce::idempotent(64 << 10),
    },
    Path {
        name: "produce-256k",
        what: "a batch of 256 KiB on its whole way through the broker",
        count: 250,
        prepare: || produce::plain(256 << 10),
    },
    Path {
        name: "produce-256k-idempotent",
        what: "the same with an idempotent producer",
        count: 250,
        prepare: || produce::idempotent(256 << 10),
    },
];

/// The path of this name.
///
/// # Errors
/// When there is none; says which there are.
pub fn named(name: &str) -> Result<Path> {
    ALL.iter().find(|path| path.name == name).copied().ok_or_else(|| {
        let names: Vec<_> = ALL.iter().map(|path| path.name).collect();
        anyhow!("there is no path '{name}': use one of {}", names.join(", "))
    })
}

/// Whether what is counted is under way.
static COUNTING: AtomicBool = AtomicBool::new(false);

/// What is counted: callgrind begins to count when this is entered and ends when it is left, on this thread alone.
///
/// # Errors
/// Those of the path.
#[inline(never)]
pub fn count_these(path: &mut dyn Repeat, count: u64) -> Result<()> {
    COUNTING.store(true, Ordering::Relaxed);
    let done = path.repeat(count);
    COUNTING.store(false, Ordering::Relaxed);
    black_box(&done);
    done
}

/// Does what is left out inside of what is counted: the work of the other side of a connection.
pub fn uncounted(work: &mut dyn FnMut()) {
    // At other times the mark would begin what it is to end.
    if COUNTING.load(Ordering::Relaxed) { leave_out(work) } else { work() }
}

/// Callgrind stops to count when this is entered and goes on when it is left.
#[inline(never)]
fn leave_out(work: &mut dyn FnMut()) {
    work();
    black_box(());
}

/// Does `work` as often as asked, and keeps the compiler from doing it fewer times.
struct Each<F>(F);

impl<T, F: FnMut() -> Result<T>> Repeat for Each<F> {
    fn repeat(&mut self, count: u64) -> Result<()> {
        for _ in 0..count {
            black_box((self.0)()?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_can_be_repeated() {
        for path in ALL {
            let mut prepared = (path.prepare)().unwrap_or_else(|error| panic!("{}: {error:#}", path.name));
            prepared.repeat(3).unwrap_or_else(|error| panic!("{}: {error:#}", path.name));
            prepared.repeat(2).unwrap_or_else(|error| panic!("{}, again: {error:#}", path.name));
        }
    }

    #[test]
    fn names_are_of_one_path_each() {
        for path in ALL {
            assert_eq!(named(path.name).unwrap().what, path.what);
        }
        let error = named("no-such").err().unwrap().to_string();
        assert!(error.contains("produce-4k-idempotent"), "{error}");
    }
}
