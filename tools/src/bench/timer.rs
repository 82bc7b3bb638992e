//! A timer as exact as the kernel's. The runtime's own timers are as coarse as a millisecond.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::net::unix::pipe;

/// See [`Timer::wait`].
#[derive(Debug)]
pub(crate) struct Timer {
    fd: OwnedFd,
    /// The same file. What the runtime has for any file that can be waited for and read from is called a pipe.
    reader: pipe::Receiver,
}

impl Timer {
    /// A timer of the current runtime.
    ///
    /// # Errors
    /// When there are too many open files.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let reader = pipe::Receiver::from_owned_fd_unchecked(fd.try_clone()?)?;
        Ok(Self { fd, reader })
    }

    /// Waits for `left`, while nothing keeps a core busy. Cancelling it is harmless.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(crate) async fn wait(&mut self, left: Duration) -> io::Result<()> {
        // Zero would mean never.
        let left = left.max(Duration::from_nanos(1));
        let value = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let once = Itimerspec { it_interval: Timespec::default(), it_value: value };
        timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &once)?;
        loop {
            self.reader.readable().await?;
            // Nothing to read: an earlier one was due that nobody waited for any more.
            match self.reader.try_read(&mut [0; 8]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read.map(drop),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn it_waits_as_long_as_it_is_told_and_again_after_it_was_given_up() {
        let mut timer = Timer::new().unwrap();
        for left in [Duration::ZERO, Duration::from_micros(100), Duration::from_millis(20)] {
            let start = Instant::now();
            timer.wait(left).await.unwrap();
            assert!(start.elapsed() >= left);
        }
        let given_up = tokio::time::timeout(Duration::from_millis(1), timer.wait(Duration::from_secs(3600)));
        given_up.await.unwrap_err();
        let start = Instant::now();
        timer.wait(Duration::from_millis(5)).await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(5));
    }
}
