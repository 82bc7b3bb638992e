//! NATS JetStream: published with an answer each, pulled in pieces.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};

use super::link::{Link, line};
use super::{Client, Load};

/// Records that are asked for at once, and how often that is asked ahead.
const PULL_RECORDS: u64 = 1000;
const PULLS_AHEAD: u64 = 4;

/// Where answers come, and where pulled records do.
const ANSWERS: &str = "_INBOX.answers";
const RECORDS: &str = "_INBOX.records";

pub(super) struct Nats {
    link: Link,
}

/// What came.
enum Heard {
    /// A message, with how long its payload is, and its text if it is one of the server.
    Message(usize, Option<String>),
    /// Something between.
    Nothing,
    /// It asks whether anybody is there.
    Ping,
}

impl Nats {
    pub(super) fn connect(address: SocketAddr) -> Result<Self> {
        let mut link = Link::connect(address)?;
        link.send(
            format!(
                "CONNECT {{\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}}\r\n\
                 SUB {ANSWERS} 1\r\nSUB {RECORDS} 2\r\nPING\r\n"
            )
            .as_bytes(),
        )?;
        let mut nats = Self { link };
        let stream = r#"{"name":"bench","subjects":["bench"],"storage":"file","retention":"limits"}"#;
        nats.call("$JS.API.STREAM.CREATE.bench", stream)?;
        Ok(nats)
    }

    /// Asks the server something and returns what it answers.
    fn call(&mut self, subject: &str, body: &str) -> Result<String> {
        self.link.send(format!("PUB {subject} {ANSWERS} {}\r\n{body}\r\n", body.len()).as_bytes())?;
        self.answer()
    }

    fn answer(&mut self) -> Result<String> {
        let (_, text) = self.message(true)?;
        let text = text.unwrap_or_default();
        ensure!(!text.contains("\"error\""), "the server says: {text}");
        Ok(text)
    }

    /// The next message; with its text if wanted.
    fn message(&mut self, with_text: bool) -> Result<(usize, Option<String>)> {
        loop {
            match self.link.next(|bytes| parse(bytes, with_text))? {
                Heard::Message(length, text) => return Ok((length, text)),
                Heard::Ping => self.link.send(b"PONG\r\n")?,
                Heard::Nothing => {}
            }
        }
    }
}

impl Client for Nats {
    fn produce(&mut self, load: Load, payload: &[u8]) -> Result<()> {
        let mut publish = format!("PUB bench {ANSWERS} {}\r\n", payload.len()).into_bytes();
        publish.extend_from_slice(payload);
        publish.extend_from_slice(b"\r\n");
        let (mut sent, mut answered) = (0, 0);
        let mut burst = Vec::new();
        while answered < load.records {
            // Half of what may be in flight at a time: the server always has something to do.
            let room = load.in_flight - (sent - answered);
            let count = room.min(load.records - sent);
            if count > 0 && (room >= load.in_flight / 2 || sent + count == load.records) {
                burst.clear();
                (0..count).for_each(|_| burst.extend_from_slice(&publish));
                self.link.send(&burst)?;
                sent += count;
            }
            self.answer()?;
            answered += 1;
        }
        Ok(())
    }

    fn consume(&mut self, load: Load) -> Result<u64> {
        let consumer = r#"{"stream_name":"bench","config":{"durable_name":"reader","deliver_policy":"all",
            "ack_policy":"none","replay_policy":"instant"}}"#;
        self.call("$JS.API.CONSUMER.DURABLE.CREATE.bench.reader", consumer)?;
        let body = format!("{{\"batch\":{PULL_RECORDS}}}");
        let pull =
            format!("PUB $JS.API.CONSUMER.MSG.NEXT.bench.reader {RECORDS} {}\r\n{body}\r\n", body.len());
        let (mut asked, mut records, mut bytes) = (0, 0, 0);
        while records < load.records {
            while asked < load.records && asked < records + PULL_RECORDS * PULLS_AHEAD {
                self.link.send(pull.as_bytes())?;
                asked += PULL_RECORDS;
            }
            bytes += self.message(false)?.0 as u64;
            records += 1;
        }
        Ok(bytes)
    }
}

/// What the server says first in `bytes`, if it is there as a whole.
fn parse(bytes: &[u8], with_text: bool) -> Result<Option<(Heard, usize)>> {
    let Some((head, at)) = line(bytes)? else { return Ok(None) };
    let mut words = head.split(' ');
    match words.next() {
        Some("MSG") => {
            let length: usize = words.next_back().context("no length")?.parse().context("a length")?;
            let Some(payload) = bytes.get(at..at + length) else { return Ok(None) };
            if bytes.len() < at + length + 2 {
                return Ok(None);
            }
            let text = with_text.then(|| String::from_utf8_lossy(payload).into_owned());
            Ok(Some((Heard::Message(length, text), at + length + 2)))
        }
        Some("PING") => Ok(Some((Heard::Ping, at))),
        Some("INFO" | "PONG" | "+OK") => Ok(Some((Heard::Nothing, at))),
        _ => bail!("the server says: {head}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_once_it_is_there() {
        let said = b"MSG bench 2 $JS.ACK.bench 5\r\nhello\r\nPING\r\n";
        let message = said.len() - 6;
        for cut in 0..message {
            assert!(parse(&said[..cut], true).unwrap().is_none(), "after {cut} bytes");
        }
        let Some((Heard::Message(5, Some(text)), length)) = parse(said, true).unwrap() else { panic!() };
        assert_eq!((text.as_str(), length), ("hello", message));
        assert!(matches!(parse(&said[message..], true).unwrap(), Some((Heard::Ping, 6))));
    }

    #[test]
    fn what_the_server_refuses_is_an_error() {
        let error = parse(b"-ERR 'Unknown Protocol Operation'\r\n", false).err().unwrap();
        assert!(error.to_string().contains("Unknown Protocol"), "{error}");
    }
}
