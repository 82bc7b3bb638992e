//! Threads that may block on the disk.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::super::file_system::IoJob;

/// Bytes of stack of a pool thread: its jobs are shallow.
const STACK_BYTES: usize = 256 << 10;

/// Up to `threads_max` threads, started as they are needed, that run jobs in the order of their arrival.
///
/// The queue itself has no bound: who hands jobs in never waits, and has its own bound on how many are under way (one
/// read a subscription or request, one flush round a data directory). Threads end when the pool is dropped and the
/// queue is empty.
pub(super) struct Pool {
    shared: Arc<Shared>,
    name: &'static str,
    threads_max: usize,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<IoJob>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Pool {
    pub(super) fn new(name: &'static str, threads_max: usize) -> Self {
        let shared = Shared { queue: Mutex::default(), wake: Condvar::new() };
        Self { shared: Arc::new(shared), name, threads_max }
    }

    /// Queues `job`. If no thread can be had at all, it runs here: late is better than never.
    pub(super) fn spawn(&self, job: IoJob) {
        let mut queue = self.shared.queue.lock();
        queue.jobs.push_back(job);
        // Jobs that were queued before this one have spoken for idle threads already.
        if queue.idle >= queue.jobs.len() {
            drop(queue);
            self.shared.wake.notify_one();
            return;
        }
        if queue.threads < self.threads_max {
            match self.start_thread() {
                Ok(()) => queue.threads += 1,
                Err(error) if queue.threads == 0 => {
                    let jobs = std::mem::take(&mut queue.jobs);
                    drop(queue);
                    tracing::error!(%error, pool = self.name, "no thread can be started: disk work runs where it is asked for");
                    jobs.into_iter().for_each(|job| job());
                    return;
                }
                Err(error) => tracing::warn!(%error, pool = self.name, "no further thread can be started"),
            }
        }
        drop(queue);
        self.shared.wake.notify_one();
    }

    fn start_thread(&self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        std::thread::Builder::new()
            .name(self.name.to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || shared.work())
            .map(|_detached| ())
    }
}

impl Shared {
    fn work(&self) {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job();
                queue = self.queue.lock();
            } else if queue.closed {
                return;
            } else {
                queue.idle += 1;
                self.wake.wait(&mut queue);
                queue.idle -= 1;
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.shared.queue.lock();
        f.debug_struct("Pool")
            .field("name", &self.name)
            .field("threads", &queue.threads)
            .field("queued", &queue.jobs.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[test]
    fn jobs_block_each_other_only_beyond_the_bound() {
        let pool = Pool::new("test", 2);
        let (first_done, first) = mpsc::channel::<()>();
        let (release, released) = mpsc::channel::<()>();
        pool.spawn(Box::new(move || released.recv().unwrap()));
        pool.spawn(Box::new(move || first_done.send(()).unwrap()));
        first.recv_timeout(DEADLINE).expect("the second thread ran the second job");
        release.send(()).unwrap();
        let (all_done, all) = mpsc::channel();
        for number in 0..100 {
            let all_done = all_done.clone();
            pool.spawn(Box::new(move || all_done.send(number).unwrap()));
        }
        let mut seen: Vec<i32> = (0..100).map(|_| all.recv_timeout(DEADLINE).unwrap()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
        assert!(pool.shared.queue.lock().threads <= 2);
    }

    #[test]
    fn queued_jobs_run_even_when_the_pool_is_gone() {
        let pool = Pool::new("test", 1);
        let (done, all) = mpsc::channel();
        for _ in 0..10 {
            let done = done.clone();
            pool.spawn(Box::new(move || done.send(()).unwrap()));
        }
        drop(pool);
        for _ in 0..10 {
            all.recv_timeout(DEADLINE).unwrap();
        }
    }
}
