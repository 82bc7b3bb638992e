//! The fan-out ceiling: one thread sends the same mapped bytes to many connections, another one takes and checksums what
//! comes. Both wait with `epoll` for whoever is ready.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::consume::{map, write_file};
use super::{Run, SEND_BYTES};

/// Events that are taken at once.
const EVENTS: usize = 1024;

/// Sends `bytes_each` bytes (rounded down to sends) of a new file in `directory` to each of `connections` connections.
/// The file is removed afterwards.
///
/// # Errors
/// When a socket or file fails, or a checksum of what arrived differs. Each connection takes two open files.
pub fn run(directory: &Path, bytes_each: u64, connections: usize) -> Result<Run> {
    let path = directory.join("ceiling-fanout");
    let sends = bytes_each / SEND_BYTES as u64;
    ensure!(sends > 0, "{bytes_each} bytes are less than one send of {SEND_BYTES}");
    let result = write_file(&path, sends).and_then(|checksum| {
        let length = sends * SEND_BYTES as u64;
        super::settle(directory, length)?;
        fan_out(&map(&path, length)?, checksum, connections)
    });
    std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    result
}

fn fan_out(mapped: &Bytes, checksum: u32, connections: usize) -> Result<Run> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on loopback")?;
    let (sending, receiving) = connect(&listener, connections)?;
    thread::scope(|scope| {
        let start = Instant::now();
        let sender = scope.spawn(|| send(mapped, sending));
        let received = receive(mapped.len(), checksum, receiving);
        let elapsed = start.elapsed();
        sender.join().map_err(|_| anyhow!("the sender panicked"))?.context("send")?;
        received.context("receive")?;
        Ok(Run { bytes: mapped.len() as u64 * connections as u64, elapsed })
    })
}

/// Both ends of each connection.
fn connect(listener: &TcpListener, count: usize) -> Result<(Vec<TcpStream>, Vec<TcpStream>)> {
    let address: SocketAddr = listener.local_addr()?;
    let (mut sending, mut receiving) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for number in 0..count {
        let connected = std::net::TcpStream::connect(address)
            .and_then(|stream| listener.accept().map(|(accepted, _)| (accepted, stream)))
            .with_context(|| format!("connection {number} of {count}; see `ulimit -n`"))?;
        for stream in [&connected.0, &connected.1] {
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
        }
        sending.push(TcpStream::from_std(connected.0));
        receiving.push(TcpStream::from_std(connected.1));
    }
    Ok((sending, receiving))
}

/// What became of a turn of one connection.
enum Turn {
    /// It can go on at once.
    More,
    /// Its socket has to be waited for.
    Wait,
    /// It is done.
    Done,
}

/// Gives each of the connections that are ready its turn, until all are done.
fn take_turns<C>(
    mut connections: Vec<C>,
    interest: Interest,
    stream: impl Fn(&mut C) -> &mut TcpStream,
    mut turn: impl FnMut(&mut C) -> Result<Turn>,
) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(EVENTS);
    for (index, connection) in connections.iter_mut().enumerate() {
        poll.registry().register(stream(connection), Token(index), interest)?;
    }
    let mut left = connections.len();
    let mut ready: VecDeque<usize> = VecDeque::new();
    while left > 0 {
        while let Some(index) = ready.pop_front() {
            let Some(connection) = connections.get_mut(index) else { continue };
            match turn(connection)? {
                Turn::More => ready.push_back(index),
                Turn::Wait => {}
                Turn::Done => left -= 1,
            }
        }
        if left > 0 {
            match poll.poll(&mut events, None) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                polled => polled?,
            }
            ready.extend(events.iter().map(|event| event.token().0));
        }
    }
    Ok(())
}

fn send(mapped: &Bytes, streams: Vec<TcpStream>) -> Result<()> {
    let connections: Vec<(TcpStream, usize)> = streams.into_iter().map(|stream| (stream, 0)).collect();
    let send_some = |(stream, sent): &mut (TcpStream, usize)| {
        let rest = mapped.get(*sent..mapped.len().min(*sent + SEND_BYTES)).unwrap_or_default();
        if rest.is_empty() {
            // Told of a connection that is done already: it does not count again.
            return Ok(Turn::Wait);
        }
        match stream.write(rest) {
            Ok(count) => *sent += count,
            Err(error) if is_later(&error) => return Ok(Turn::Wait),
            Err(error) => return Err(error.into()),
        }
        Ok(if *sent == mapped.len() { Turn::Done } else { Turn::More })
    };
    take_turns(connections, Interest::WRITABLE, |(stream, _)| stream, send_some)
}

/// A connection that is received from.
struct Incoming {
    stream: TcpStream,
    received: usize,
    hasher: crc32fast::Hasher,
}

fn receive(length: usize, checksum: u32, streams: Vec<TcpStream>) -> Result<()> {
    let incoming = |stream| Incoming { stream, received: 0, hasher: crc32fast::Hasher::new() };
    let connections: Vec<Incoming> = streams.into_iter().map(incoming).collect();
    let mut buffer = vec![0; SEND_BYTES];
    let receive_some = |incoming: &mut Incoming| {
        if incoming.received == length {
            return Ok(Turn::Wait);
        }
        let count = match incoming.stream.read(&mut buffer) {
            Ok(0) => return Err(anyhow!("closed after {} of {length} bytes", incoming.received)),
            Ok(count) => count,
            Err(error) if is_later(&error) => return Ok(Turn::Wait),
            Err(error) => return Err(error.into()),
        };
        incoming.hasher.update(buffer.get(..count).unwrap_or_default());
        incoming.received += count;
        if incoming.received < length {
            return Ok(Turn::More);
        }
        ensure!(incoming.hasher.clone().finalize() == checksum, "what arrived is not what was sent");
        Ok(Turn::Done)
    };
    take_turns(connections, Interest::READABLE, |incoming| &mut incoming.stream, receive_some)
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_gets_the_whole_file() {
        let directory = tempfile::tempdir().unwrap();
        let run = run(directory.path(), 3 << 20, 7).unwrap();
        assert_eq!(run.bytes, 7 * (3 << 20));
        assert_eq!(directory.path().read_dir().unwrap().count(), 0, "the file is removed");
    }

    #[test]
    fn other_bytes_than_those_of_the_file_are_an_error() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (sending, receiving) = connect(&listener, 2).unwrap();
        let bytes = Bytes::from(vec![7; 1000]);
        send(&bytes, sending).unwrap();
        let error = receive(1000, crc32fast::hash(&[8; 1000]), receiving).unwrap_err();
        assert_eq!(error.to_string(), "what arrived is not what was sent");
    }
}
