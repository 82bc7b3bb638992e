//! What a record costs at best when records come by a schedule: over loopback and back, and onto the disk.
//!
//! Latency counts from the moment at which each was due, as in `highwater bench latency`: whoever only times one operation
//! after another does not see how many had to wait while one of them took long.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::payload::incompressible;
use crate::sample::Spread;

/// When each value is due.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    start: Instant,
    rate: u32,
}

impl Schedule {
    fn new(rate: u32) -> Self {
        Self { start: Instant::now() + Duration::from_millis(10), rate }
    }

    fn due(&self, index: usize) -> Instant {
        self.start + Duration::from_nanos(index as u64 * 1_000_000_000 / u64::from(self.rate))
    }

    fn wait(&self, index: usize) {
        loop {
            let left = self.due(index).saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::park_timeout(left);
        }
    }
}

/// Sends `count` values of `bytes` bytes at `rate` a second over loopback to a thread that sends them back.
///
/// # Errors
/// When a socket fails.
pub fn echo(rate: u32, count: usize, bytes: usize) -> Result<Spread> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on loopback")?;
    let mut sending = TcpStream::connect(listener.local_addr()?)?;
    let (mut echoing, _) = listener.accept()?;
    for stream in [&sending, &echoing] {
        stream.set_nodelay(true)?;
    }
    let mut receiving = sending.try_clone()?;
    let payload = incompressible(bytes, 12);
    let schedule = Schedule::new(rate);
    thread::scope(|scope| {
        let echo = scope.spawn(move || -> Result<()> {
            let mut buffer = vec![0; bytes];
            for _ in 0..count {
                echoing.read_exact(&mut buffer)?;
                echoing.write_all(&buffer)?;
            }
            Ok(())
        });
        let receive = scope.spawn(move || -> Result<Vec<Duration>> {
            let mut buffer = vec![0; bytes];
            let mut latencies = Vec::with_capacity(count);
            for index in 0..count {
                receiving.read_exact(&mut buffer)?;
                latencies.push(Instant::now().saturating_duration_since(schedule.due(index)));
            }
            Ok(latencies)
        });
        for index in 0..count {
            schedule.wait(index);
            sending.write_all(&payload)?;
        }
        let mut latencies = receive.join().map_err(|_| anyhow!("the receiver panicked"))??;
        echo.join().map_err(|_| anyhow!("the echo panicked"))??;
        Ok(Spread::of(&mut latencies))
    })
}

/// Appends `count` values of `bytes` bytes at `rate` a second to a new file in `directory`, while another thread calls
/// `fdatasync` for as many as are there, again and again.
///
/// # Errors
/// When the file fails.
pub fn append_and_sync(directory: &Path, rate: u32, count: usize, bytes: usize) -> Result<Spread> {
    let path = directory.join("ceiling-scheduled");
    super::settle(directory, (count * bytes) as u64)?;
    let file = File::create_new(&path).with_context(|| format!("create {}", path.display()))?;
    let result = run_appends(&file, rate, count, bytes);
    drop(file);
    std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    result
}

fn run_appends(file: &File, rate: u32, count: usize, bytes: usize) -> Result<Spread> {
    let payload = incompressible(bytes, 13);
    let written = AtomicUsize::new(0);
    let schedule = Schedule::new(rate);
    thread::scope(|scope| {
        let flush = scope.spawn(|| -> Result<Vec<Duration>> {
            let mut latencies = Vec::with_capacity(count);
            while latencies.len() < count {
                let upto = written.load(Ordering::Acquire);
                if upto == latencies.len() {
                    thread::park_timeout(Duration::from_secs(1));
                    continue;
                }
                file.sync_data()?;
                let now = Instant::now();
                let flushed = latencies.len()..upto;
                latencies.extend(flushed.map(|index| now.saturating_duration_since(schedule.due(index))));
            }
            Ok(latencies)
        });
        for index in 0..count {
            schedule.wait(index);
            file.write_all_at(&payload, (index * bytes) as u64)?;
            written.store(index + 1, Ordering::Release);
            flush.thread().unpark();
        }
        let mut latencies = flush.join().map_err(|_| anyhow!("the flusher panicked"))??;
        Ok(Spread::of(&mut latencies))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_counted_from_when_it_was_due() {
        let echoed = echo(1000, 50, 100).unwrap();
        assert_eq!(echoed.count, 50);
        let directory = tempfile::tempdir().unwrap();
        let synced = append_and_sync(directory.path(), 1000, 50, 100).unwrap();
        assert_eq!(synced.count, 50);
        assert!(echoed.p50 > 0.0 && synced.p50 > 0.0);
        assert_eq!(directory.path().read_dir().unwrap().count(), 0, "the file is removed");
    }

    #[test]
    fn the_schedule_is_even() {
        let schedule = Schedule::new(3);
        assert_eq!(schedule.due(0), schedule.start);
        assert_eq!(schedule.due(3_000_000), schedule.start + Duration::from_secs(1_000_000));
    }
}
