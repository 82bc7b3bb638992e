//! The replicated producing ceiling: as the flushed one, with two followers that get every piece from the leader, check,
//! append and sync it; a piece is acknowledged when all three copies are synced.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, anyhow};

use super::produce::{Acknowledge, Acknowledgements, Progress, append, receive, send};
use super::{PIECE_BYTES, Run};

/// Copies, the leader's included.
const COPIES: usize = 3;

/// Moves `bytes` (rounded down to pieces) into three new files in `directory`, which are removed afterwards.
///
/// # Errors
/// When a socket or file fails, or a checksum differs.
pub fn run(directory: &Path, bytes: u64) -> Result<Run> {
    let pieces = bytes / PIECE_BYTES as u64;
    super::settle(directory, bytes * COPIES as u64)?;
    let paths: [_; COPIES] = std::array::from_fn(|copy| directory.join(format!("ceiling-replica-{copy}")));
    let result = replicate(&paths.each_ref().map(|path| path.as_path()), pieces);
    for path in &paths {
        std::fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
    }
    result
}

fn replicate(paths: &[&Path; COPIES], pieces: u64) -> Result<Run> {
    let [leader, first, second] = paths.map(Replica::new);
    let (leader, first, second) = (&leader?, &first?, &second?);
    thread::scope(|scope| {
        let followers = [&first, &second].map(|replica| scope.spawn(|| receive_at(replica, pieces)));
        let addresses = [first.address, second.address];
        let leading = scope.spawn(move || lead(leader, addresses, pieces));
        let elapsed = send(TcpStream::connect(leader.address)?, pieces).context("send")?;
        leading.join().map_err(|_| anyhow!("the leader panicked"))?.context("lead")?;
        for follower in followers {
            follower.join().map_err(|_| anyhow!("a follower panicked"))?.context("follow")?;
        }
        Ok(Run { bytes: pieces * PIECE_BYTES as u64, elapsed })
    })
}

/// Where a copy goes.
struct Replica {
    file: File,
    listener: TcpListener,
    address: SocketAddr,
}

impl Replica {
    fn new(path: &Path) -> Result<Self> {
        let file = File::create_new(path).with_context(|| format!("create {}", path.display()))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on loopback")?;
        let address = listener.local_addr()?;
        Ok(Self { file, listener, address })
    }
}

fn receive_at(replica: &Replica, pieces: u64) -> Result<()> {
    receive(&replica.listener, &replica.file, pieces, Acknowledge::Flushed)
}

/// How far each copy is synced, and the producer who is told the least of it.
struct Committed<'a> {
    producer: &'a TcpStream,
    synced: Mutex<[u64; COPIES]>,
}

impl Committed<'_> {
    fn advance(&self, copy: usize, end: u64) -> Result<()> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        let least = |synced: &[u64; COPIES]| synced.iter().copied().min().unwrap_or_default();
        let before = least(&synced);
        if let Some(known) = synced.get_mut(copy) {
            *known = end;
        }
        let after = least(&synced);
        if after > before {
            // Under the lock, so that acknowledgements never go back.
            let mut producer = self.producer;
            producer.write_all(&after.to_le_bytes())?;
        }
        Ok(())
    }
}

/// Receives, checks, appends and forwards all pieces; a thread syncs, and one for each follower hears how far that is.
fn lead(replica: &Replica, followers: [SocketAddr; COPIES - 1], pieces: u64) -> Result<()> {
    let (stream, _) = replica.listener.accept()?;
    stream.set_nodelay(true)?;
    let total = pieces * PIECE_BYTES as u64;
    let [first, second] = followers.map(TcpStream::connect);
    let links = [first?, second?];
    links.iter().try_for_each(|link| link.set_nodelay(true))?;
    let committed = Committed { producer: &stream, synced: Mutex::default() };
    let progress = Progress::default();
    thread::scope(|scope| {
        let committed = &committed;
        let hearing: Vec<_> = (1..)
            .zip(&links)
            .map(|(copy, link)| scope.spawn(move || hear(link, copy, committed, total)))
            .collect();
        let flushing = scope.spawn(|| {
            let mut flushed = 0;
            while flushed < total {
                flushed = progress.beyond(flushed);
                replica.file.sync_data()?;
                committed.advance(0, flushed)?;
            }
            Ok::<_, anyhow::Error>(())
        });
        let appended = append(&stream, &replica.file, total, |bytes, written| {
            for mut link in &links {
                link.write_all(bytes)?;
            }
            progress.advance(written);
            Ok(())
        });
        if appended.is_err() {
            progress.advance(total);
            links.iter().try_for_each(|link| link.shutdown(std::net::Shutdown::Both))?;
        }
        flushing.join().map_err(|_| anyhow!("the flusher panicked"))??;
        for heard in hearing {
            heard.join().map_err(|_| anyhow!("a link panicked"))??;
        }
        appended
    })
}

/// Notes what a follower acknowledges until it has everything.
fn hear(mut link: &TcpStream, copy: usize, committed: &Committed<'_>, total: u64) -> Result<()> {
    let mut acknowledgements = Acknowledgements::default();
    let mut synced = 0;
    while synced < total {
        synced = acknowledgements.latest(&mut link)?;
        committed.advance(copy, synced)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_are_moved_three_times() {
        let directory = tempfile::tempdir().unwrap();
        let run = run(directory.path(), 9 << 20).unwrap();
        assert_eq!(run.bytes, 9 << 20);
        assert!(run.megabytes_per_second() > 0.0);
        assert_eq!(directory.path().read_dir().unwrap().count(), 0, "the files are removed");
    }
}
