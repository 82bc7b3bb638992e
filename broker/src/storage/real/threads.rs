//! A few threads for work that waits for the disk.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::storage::file_system::IoJob;

/// Threads that start when there is work for them and end when this is dropped and all work is done.
///
/// The queue has no bound of its own: whoever spawns has one for what it waits for (a read per subscription, a job per
/// log).
pub(super) struct Threads {
    shared: Arc<Shared>,
    name: &'static str,
    count_max: usize,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<IoJob>,
    running: usize,
    idle: usize,
    closed: bool,
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.lock();
        write!(
            f,
            "{} ({} of {} threads, {} jobs)",
            self.name,
            state.running,
            self.count_max,
            state.queue.len()
        )
    }
}

impl Threads {
    pub(super) fn new(name: &'static str, count_max: usize) -> Self {
        let shared = Shared { state: Mutex::new(State::default()), wake: Condvar::new() };
        Self { shared: Arc::new(shared), name, count_max }
    }

    pub(super) fn spawn(&self, job: IoJob) {
        let mut state = self.shared.state.lock();
        state.queue.push_back(job);
        if state.queue.len() <= state.idle || state.running == self.count_max {
            // Before it is woken: it would find the lock taken, and wait for it by giving up its processor.
            drop(state);
            self.shared.wake.notify_one();
            return;
        }
        state.running += 1;
        let first = state.running == 1;
        drop(state);
        let shared = Arc::clone(&self.shared);
        let started = std::thread::Builder::new().name(self.name.to_owned()).spawn(move || work(&shared));
        if started.is_err() {
            self.shared.state.lock().running -= 1;
            if first {
                // Nobody else will ever take it: better to block here than never to answer.
                let job = self.shared.state.lock().queue.pop_front();
                if let Some(job) = job {
                    job();
                }
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

fn work(shared: &Shared) {
    let mut state = shared.state.lock();
    loop {
        if let Some(job) = state.queue.pop_front() {
            drop(state);
            job();
            state = shared.state.lock();
        } else if state.closed {
            return;
        } else {
            state.idle += 1;
            shared.wake.wait(&mut state);
            state.idle -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn every_job_runs_also_those_queued_at_the_end() {
        let threads = Threads::new("test", 3);
        let (sender, receiver) = mpsc::sync_channel(100);
        for number in 0..100 {
            let sender = sender.clone();
            threads.spawn(Box::new(move || sender.send(number).unwrap()));
        }
        drop((threads, sender));
        let mut all: Vec<i32> = receiver.iter().collect();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
    }
}
