//! Threads that complete flush rounds and run I/O jobs for tests with a real runtime.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use highwater_broker::storage::file_system::IoJob;

/// One thread for flushes and one for I/O jobs, each in the order in which it was given work.
#[derive(Debug)]
pub(super) struct Threads {
    flush: Arc<Queue>,
    io: Arc<Queue>,
}

impl Threads {
    pub(super) fn start() -> Self {
        Self { flush: Queue::start(), io: Queue::start() }
    }

    /// Runs `job` after `delay`.
    pub(super) fn flush(&self, delay: Duration, job: IoJob) {
        self.flush.push(delay, job);
    }

    pub(super) fn io(&self, job: IoJob) {
        self.io.push(Duration::ZERO, job);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.flush.close();
        self.io.close();
    }
}

#[derive(Default)]
struct Queue {
    work: Mutex<Work>,
    changed: Condvar,
}

#[derive(Default)]
struct Work {
    jobs: VecDeque<(Duration, IoJob)>,
    closed: bool,
}

impl Queue {
    fn start() -> Arc<Self> {
        let queue = Arc::new(Self::default());
        let own = Arc::clone(&queue);
        thread::spawn(move || own.run());
        queue
    }

    fn push(&self, delay: Duration, job: IoJob) {
        self.work.lock().jobs.push_back((delay, job));
        self.changed.notify_one();
    }

    /// Jobs that are left are dropped: nobody is there to see what they would do.
    fn close(&self) {
        let left = {
            let mut work = self.work.lock();
            work.closed = true;
            std::mem::take(&mut work.jobs)
        };
        self.changed.notify_all();
        drop(left);
    }

    fn run(&self) {
        loop {
            let mut work = self.work.lock();
            while work.jobs.is_empty() && !work.closed {
                self.changed.wait(&mut work);
            }
            let Some((delay, job)) = work.jobs.pop_front() else { return };
            if !delay.is_zero() && !work.closed {
                // Simulated latency: nothing waits for it but the round itself.
                let never = Condvar::new();
                drop(work);
                never.wait_for(&mut Mutex::new(()).lock(), delay);
            } else {
                drop(work);
            }
            job();
        }
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}
