//! Measures the storage by itself, on a directory of your choice. The figures in `docs/adr` come from here.
//!
//! ```text
//! cargo run --release -p highwater-broker --example storage_bench -- rounds  DIR   # flush rounds at 1 … 10,000 dirty logs
//! cargo run --release -p highwater-broker --example storage_bench -- append  DIR   # appends and reads of one log
//! cargo run --release -p highwater-broker --example storage_bench -- restart DIR GIB  # time to open a large log again
//! cargo run --release -p highwater-broker --example storage_bench -- many    DIR N    # N logs: made, dirty, opened again
//! ```
#![expect(clippy::print_stdout, reason = "it reports to a terminal")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a measurement that fails has nothing to say")]

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use highwater_broker::storage::config::{LogConfig, StoreConfig};
use highwater_broker::storage::log::{Log, StampedBatch};
use highwater_broker::storage::real::{RealFileSystem, raise_open_files_limit};
use highwater_broker::storage::sink::{FlushOutcome, FlushSink};
use highwater_broker::storage::store::Store;
use highwater_broker_core::durability::Durability;
use highwater_protocol::batch::{BatchBuilder, BatchHeader, HEADER_LENGTH, LeaderStamp};
use highwater_protocol::compression::Compression;
use highwater_protocol::ids::{DirectoryId, LeaderEpoch, Offset, PartitionId, TopicId, TopicPartition};

struct Sink {
    log: usize,
    sender: SyncSender<(usize, FlushOutcome)>,
}

impl FlushSink for Sink {
    fn flush_done(&self, outcome: FlushOutcome) {
        // Nobody listens any more at the end.
        drop(self.sender.send((self.log, outcome)));
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let limit = raise_open_files_limit();
    match words[..] {
        ["rounds", directory] => rounds(Path::new(directory), limit),
        ["append", directory] => append(Path::new(directory)),
        ["restart", directory, gib] => restart(Path::new(directory), gib.parse().expect("a number of GiB")),
        ["many", directory, count] => many(Path::new(directory), count.parse().expect("a number of logs")),
        _ => println!("usage: storage_bench rounds DIR | append DIR | restart DIR GIB | many DIR N"),
    }
}

fn open_store(directory: &Path, open_files_max: usize) -> Arc<Store> {
    let config = StoreConfig { open_files_max, ..StoreConfig::default() };
    Store::open(Arc::new(RealFileSystem::default()), directory, config, DirectoryId(1)).unwrap().0
}

fn partition(number: u32) -> TopicPartition {
    TopicPartition::new(TopicId(1), PartitionId(number))
}

/// A batch of one record of `size` incompressible bytes.
fn sent_batch(partition: TopicPartition, size: usize) -> (BatchHeader, Bytes) {
    let mut value = vec![0; size];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for byte in &mut value {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (state >> 56) as u8;
    }
    let mut builder = BatchBuilder::with_capacity(size + 200);
    builder.push(1, None, Some(&value), &[]);
    let sent = builder.build(partition, Compression::None).unwrap();
    (BatchHeader::decode(&sent).unwrap(), sent)
}

fn stamp(partition: TopicPartition, header: &BatchHeader, sent: &Bytes, offset: Offset) -> StampedBatch {
    let leader = LeaderStamp {
        base_offset: offset,
        leader_epoch: LeaderEpoch(1),
        append_time: 1,
        ..LeaderStamp::default()
    };
    StampedBatch {
        head: header.stamped(leader, partition),
        tail: sent.slice(HEADER_LENGTH..),
        header: BatchHeader { leader, ..*header },
    }
}

/// Appends 4 KiB to each of `count` logs while no flush is asked for, then asks for all at once and waits for all.
fn rounds(directory: &Path, limit: u64) {
    println!("flush rounds: 4 KiB appended to each of N logs, then one round; open files limit {limit}");
    println!("{:>8} {:>8} {:>12} {:>12} {:>12}", "logs", "rounds", "p50", "p99", "max");
    raw_sync(directory);
    for (count, repeat) in [(1, 400), (10, 200), (32, 200), (100, 100), (1_000, 40), (10_000, 10)] {
        let root = directory.join(format!("rounds-{count}"));
        let store = open_store(&root, 20_000);
        let (sender, receiver) = sync_channel(100_000);
        let mut logs = open_logs(&store, count, Durability::Os, &sender);
        let batches: Vec<_> = logs.iter().map(|log| sent_batch(log.partition(), 4000)).collect();
        let mut times = Vec::new();
        for round in 0..=repeat {
            for (log, (header, sent)) in logs.iter_mut().zip(&batches) {
                log.append(&[stamp(log.partition(), header, sent, log.log_end())]).unwrap();
            }
            let start = Instant::now();
            for log in &logs {
                log.request_flush();
            }
            wait_flushed(&mut logs, &receiver);
            // The first one makes directories and files durable too.
            if round > 0 {
                times.push(start.elapsed());
            }
        }
        print_times(count, &mut times);
        drop(logs);
        drop(store);
        std::fs::remove_dir_all(&root).unwrap();
    }
}

/// What the disk takes by itself at this moment: one file, 4 KiB, `fdatasync`.
fn raw_sync(directory: &Path) {
    use std::os::unix::fs::FileExt;
    std::fs::create_dir_all(directory).unwrap();
    let path = directory.join("raw");
    let file = std::fs::File::create(&path).unwrap();
    let mut times = Vec::new();
    for number in 0..400 {
        file.write_all_at(&[7; 4096], number * 4096).unwrap();
        let start = Instant::now();
        file.sync_data().unwrap();
        times.push(start.elapsed());
    }
    std::fs::remove_file(&path).unwrap();
    print!("raw: ");
    print_times(1, &mut times);
}

fn open_logs(
    store: &Arc<Store>,
    count: u32,
    durability: Durability,
    sender: &SyncSender<(usize, FlushOutcome)>,
) -> Vec<Log> {
    let config = LogConfig { durability, ..LogConfig::default() };
    let open = |number: u32| {
        let sink = Sink { log: number as usize, sender: sender.clone() };
        store.open_log(partition(number), config, Arc::new(sink)).unwrap().0
    };
    (0..count).map(open).collect()
}

fn wait_flushed(logs: &mut [Log], receiver: &Receiver<(usize, FlushOutcome)>) {
    let mut left = logs.iter().filter(|log| log.flushed_end() < log.log_end()).count();
    while left > 0 {
        let (number, outcome) = receiver.recv_timeout(Duration::from_secs(60)).unwrap();
        let FlushOutcome::Flushed { log_generation, upto } = outcome else { panic!("{outcome:?}") };
        let log = &mut logs[number];
        let before = log.flushed_end() < log.log_end();
        log.flushed(log_generation, upto);
        left -= usize::from(before && log.flushed_end() == log.log_end());
    }
}

fn print_times(count: u32, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part).round() as usize];
    println!("{count:>8} {:>8} {:>12.2?} {:>12.2?} {:>12.2?}", times.len(), at(0.5), at(0.99), at(1.0));
}

/// One log: appends of 64 KiB batches, four a call; then reads of all of it in slices of 1 MiB.
fn append(directory: &Path) {
    const TOTAL: u64 = 1 << 30;
    for (name, durability, calls_in_flight) in
        [("os", Durability::Os, u64::MAX), ("fsync, 4 MiB in flight", Durability::Fsync, 16)]
    {
        let root = directory.join("append");
        let store = open_store(&root, 1000);
        let (sender, receiver) = sync_channel(100_000);
        let mut logs = open_logs(&store, 1, durability, &sender);
        let (header, sent) = sent_batch(partition(0), 65_400);
        let start = Instant::now();
        let mut written = 0;
        while written < TOTAL {
            let log = &mut logs[0];
            let end = log.log_end();
            let batches: Vec<_> =
                (0..4).map(|n| stamp(partition(0), &header, &sent, Offset(end.get() + n))).collect();
            log.append(&batches).unwrap();
            written += 4 * header.length() as u64;
            while log.log_end().count_since(log.flushed_end()) / 4 > calls_in_flight {
                let (_, outcome) = receiver.recv_timeout(Duration::from_secs(60)).unwrap();
                let FlushOutcome::Flushed { log_generation, upto } = outcome else { panic!("{outcome:?}") };
                log.flushed(log_generation, upto);
            }
        }
        println!("append, {name}: {:.2} GB/s", rate(written, start));
        read_all(&mut logs[0], name);
        drop(logs);
        drop(store);
        std::fs::remove_dir_all(&root).unwrap();
    }
}

fn read_all(log: &mut Log, name: &str) {
    let start = Instant::now();
    let (mut next, mut read, mut plans, mut ready_plans) = (Offset::ZERO, 0, 0, 0);
    while next < log.log_end() {
        let mut plan = log.plan_read(next, log.log_end(), 1 << 20).unwrap();
        plans += 1;
        let batches = match plan.ready() {
            Some(ready) => {
                ready_plans += 1;
                ready.unwrap()
            }
            None => plan.execute().unwrap(),
        };
        let bytes: usize = batches.iter().map(Bytes::len).sum();
        read += bytes as u64;
        let header_length = 65_400 + 47 + 40;
        next = Offset(next.get() + bytes as u64 / header_length);
    }
    let rate = rate(read, start);
    println!("plan and slice, {name}: {rate:.2} GB/s, {plans} plans, {ready_plans} of them ready at once");
}

/// Writes a large log, lets go of it as a crash would, and opens it again.
fn restart(directory: &Path, gib: u64) {
    let root = directory.join("restart");
    {
        let store = open_store(&root, 1000);
        let (sender, _receiver) = sync_channel(100_000);
        let mut logs = open_logs(&store, 1, Durability::Os, &sender);
        let (header, sent) = sent_batch(partition(0), 65_400);
        let mut written = 0;
        while written < gib << 30 {
            let end = logs[0].log_end();
            logs[0].append(&[stamp(partition(0), &header, &sent, end)]).unwrap();
            written += header.length() as u64;
        }
        // Sealed segments get into the manifest when they are flushed.
        logs[0].request_flush();
        while let Ok((_, FlushOutcome::Flushed { log_generation, upto })) =
            _receiver.recv_timeout(Duration::from_secs(600))
        {
            logs[0].flushed(log_generation, upto);
            if logs[0].flushed_end() == logs[0].log_end() {
                break;
            }
        }
    }
    for drop_cache in [false, true] {
        if drop_cache {
            println!("page cache dropped: {}", std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok());
        }
        let start = Instant::now();
        let store = open_store(&root, 1000);
        let (sender, _receiver) = sync_channel(1000);
        let sink = Arc::new(Sink { log: 0, sender });
        let (mut log, report) = store.open_log(partition(0), LogConfig::default(), sink).unwrap();
        let opened = start.elapsed();
        let mut plan = log.plan_read(Offset(5), log.log_end(), 1 << 20).unwrap();
        plan.execute().unwrap();
        println!(
            "{:.1} GiB, {} segments trusted, {} MiB scanned: open in {opened:.2?}, first old batch after {:.2?}",
            log.bytes() as f64 / (1u64 << 30) as f64,
            report.segments_trusted,
            report.bytes_scanned >> 20,
            start.elapsed()
        );
    }
    std::fs::remove_dir_all(&root).unwrap();
}

/// Makes many logs, appends a little to each, lets go of them as a crash would, and opens them again, one after another.
fn many(directory: &Path, count: u32) {
    let root = directory.join("many");
    {
        let store = open_store(&root, 1000);
        let (sender, receiver) = sync_channel(100_000);
        let start = Instant::now();
        let mut logs = open_logs(&store, count, Durability::Fsync, &sender);
        println!("{count} logs made in {:.2?}", start.elapsed());
        let start = Instant::now();
        for log in &mut logs {
            let (header, sent) = sent_batch(log.partition(), 1000);
            log.append(&[stamp(log.partition(), &header, &sent, Offset::ZERO)]).unwrap();
        }
        println!("first append to each in {:.2?}", start.elapsed());
        wait_flushed(&mut logs, &receiver);
        println!("all flushed after {:.2?}, {} files open", start.elapsed(), store.open_files());
    }
    let start = Instant::now();
    let store = open_store(&root, 1000);
    let (sender, _receiver) = sync_channel(1000);
    let logs = open_logs(&store, count, Durability::Fsync, &sender);
    println!("{count} logs opened again in {:.2?}, {} files open", start.elapsed(), store.open_files());
    drop(logs);
    drop(store);
    std::fs::remove_dir_all(&root).unwrap();
}

fn rate(bytes: u64, start: Instant) -> f64 {
    bytes as f64 / start.elapsed().as_secs_f64() / 1e9
}
