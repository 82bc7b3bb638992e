//! Reading input as lines, in pieces of bounded size, on a thread of its own.

use std::io::{self, Read};

use tokio::sync::mpsc;

/// How much is asked of the input at once.
const READ_BYTES: usize = 256 << 10;

/// Some input.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Whole lines, in order; only the very last line of the input may lack its newline.
    Lines(Vec<u8>),
    /// One line of more bytes than allowed, which was passed over; how many it had.
    TooLong(u64),
    /// The input cannot be read any further.
    Failed(io::Error),
}

/// Reads `input` on a new thread, until its end. A line may have `line_bytes_max` bytes. What has been read goes out
/// at once, so that lines that trickle in are not held back. At most `ahead` pieces wait.
pub(crate) fn read(
    mut input: impl Read + Send + 'static,
    line_bytes_max: usize,
    ahead: usize,
) -> io::Result<mpsc::Receiver<Piece>> {
    let (sender, receiver) = mpsc::channel(ahead);
    std::thread::Builder::new().name("input".to_owned()).spawn(move || {
        let mut splitter = Splitter::new(line_bytes_max);
        // Ends when the receiver is gone: then nobody wants the rest.
        let _ = splitter.run(&mut input, |piece| sender.blocking_send(piece).is_ok());
    })?;
    Ok(receiver)
}

/// The lines of a piece, without their newlines.
pub(crate) fn lines(piece: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = piece;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (line, after) = split_line(rest);
        rest = after;
        Some(line)
    })
}

/// The first line without its newline, and what follows it.
fn split_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    match find_newline(bytes) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &[]),
    }
}

/// Where the first newline is. `skip_until` of a slice cannot fail, and searches with the platform's `memchr`.
fn find_newline(mut bytes: &[u8]) -> Option<usize> {
    let start = bytes;
    let skipped = io::BufRead::skip_until(&mut bytes, b'\n').unwrap_or(0);
    (skipped > 0 && start[skipped - 1] == b'\n').then(|| skipped - 1)
}

#[derive(Debug)]
struct Splitter {
    line_bytes_max: usize,
    /// A line that has begun.
    begun: Vec<u8>,
    /// Bytes passed over of a line that is too long; 0 when there is none.
    passed_over: u64,
}

impl Splitter {
    const fn new(line_bytes_max: usize) -> Self {
        Self { line_bytes_max, begun: Vec::new(), passed_over: 0 }
    }

    /// Hands pieces to `out` until the input ends or `out` returns false; then it returns `None`.
    fn run(&mut self, input: &mut impl Read, mut out: impl FnMut(Piece) -> bool) -> Option<()> {
        let mut go_on = |piece| out(piece).then_some(());
        loop {
            let begun = self.begun.len();
            let mut buffer = std::mem::take(&mut self.begun);
            buffer.resize(begun + READ_BYTES, 0);
            let count = loop {
                match input.read(&mut buffer[begun..]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => break other,
                }
            };
            match count {
                Ok(count) => buffer.truncate(begun + count),
                Err(error) => {
                    go_on(Piece::Failed(error))?;
                    return Some(());
                }
            }
            if buffer.len() == begun {
                return self.end(buffer, go_on);
            }
            self.take(buffer, begun, &mut go_on)?;
        }
    }

    /// Takes what has been read: `buffer[begun..]` is new.
    fn take(
        &mut self,
        mut buffer: Vec<u8>,
        begun: usize,
        go_on: &mut impl FnMut(Piece) -> Option<()>,
    ) -> Option<()> {
        if self.passed_over > 0 {
            let Some(end) = find_newline(&buffer) else {
                self.passed_over += buffer.len() as u64;
                return Some(());
            };
            go_on(Piece::TooLong(std::mem::take(&mut self.passed_over) + end as u64))?;
            buffer.drain(..=end);
            return self.take(buffer, 0, go_on);
        }
        let Some(last) = buffer[begun..].iter().rposition(|&byte| byte == b'\n').map(|at| begun + at) else {
            if buffer.len() > self.line_bytes_max {
                self.passed_over = buffer.len() as u64;
            } else {
                self.begun = buffer;
            }
            return Some(());
        };
        let rest = buffer[last + 1..].to_vec();
        buffer.truncate(last + 1);
        // Only the first line can have begun before, so only it can be longer than one read.
        match find_newline(&buffer) {
            Some(end) if end > self.line_bytes_max => {
                go_on(Piece::TooLong(end as u64))?;
                buffer.drain(..=end);
            }
            _ => {}
        }
        if !buffer.is_empty() {
            go_on(Piece::Lines(buffer))?;
        }
        self.take_rest(rest)
    }

    fn take_rest(&mut self, rest: Vec<u8>) -> Option<()> {
        if rest.len() > self.line_bytes_max {
            self.passed_over = rest.len() as u64;
        } else {
            self.begun = rest;
        }
        Some(())
    }

    fn end(&mut self, begun: Vec<u8>, mut go_on: impl FnMut(Piece) -> Option<()>) -> Option<()> {
        if self.passed_over > 0 {
            return go_on(Piece::TooLong(self.passed_over));
        }
        if begun.is_empty() { Some(()) } else { go_on(Piece::Lines(begun)) }
    }
}

const _: () = assert!(READ_BYTES <= highwater_protocol::limits::BATCH_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives the input in pieces of a given size, as a pipe may.
    struct Trickle<'a>(&'a [u8], usize);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.len().min(self.1).min(buffer.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    /// Lines as given out, `None` for one that was too long.
    fn split(input: &[u8], step: usize, line_bytes_max: usize) -> Vec<Option<Vec<u8>>> {
        let mut all = Vec::new();
        Splitter::new(line_bytes_max).run(&mut Trickle(input, step), |piece| {
            match piece {
                Piece::Lines(bytes) => all.extend(lines(&bytes).map(|line| Some(line.to_vec()))),
                Piece::TooLong(bytes) => {
                    assert!(bytes > line_bytes_max as u64);
                    all.push(None);
                }
                Piece::Failed(error) => panic!("{error}"),
            }
            true
        });
        all
    }

    #[test]
    fn lines_come_out_whole_whatever_the_reads_are() {
        let input = b"a\n\nbc\xff\0\r\nlong enough\nlast";
        let expected: Vec<_> = input.split(|&b| b == b'\n').map(|line| Some(line.to_vec())).collect();
        for step in 1..=input.len() {
            assert_eq!(split(input, step, 100), expected, "step {step}");
        }
    }

    #[test]
    fn a_final_newline_makes_no_empty_line() {
        assert_eq!(split(b"a\nb\n", 3, 10), [Some(b"a".to_vec()), Some(b"b".to_vec())]);
        assert_eq!(split(b"", 3, 10), Vec::<Option<Vec<u8>>>::new());
        assert_eq!(split(b"\n", 3, 10), [Some(Vec::new())]);
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over_in_its_place() {
        let input = b"one\nmuch too long\ntwo\nalso far too long";
        let expected = [Some(b"one".to_vec()), None, Some(b"two".to_vec()), None];
        for step in 1..=4 {
            // Lines are checked when a read ends in them, so the limit is met exactly only with small reads.
            assert_eq!(split(input, step, 4), expected, "step {step}");
        }
    }
}
