//! Memory that producers may fill: one budget for the broker, one cumulative window for each connection.
//!
//! Every connection has a base grant that nobody can take from it. What is left of the budget is lent on top of that, in
//! equal shares among the connections that produce. A window may be overdrawn by one request, so that
//! a batch of any size gets through.

/// Sizes of the windows, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSizes {
    /// What every connection has from the start.
    pub base: u64,
    /// The most that one connection may have outstanding.
    pub max: u64,
}

/// What all connections of a broker share.
#[derive(Debug)]
pub struct Budget {
    sizes: WindowSizes,
    /// Bytes that can be lent on top of the base grants.
    lendable: u64,
    lent: u64,
    /// Windows that were ever used: an idle consumer takes no share from producers.
    producing: u64,
}

impl Budget {
    /// A budget of `total` bytes for at most `windows_max` connections.
    #[must_use]
    pub fn new(total: u64, windows_max: u64, window_max: u64) -> Self {
        // Half of it is for the base grants, which must cover every connection; a page is the least that makes sense.
        let base = (total / 2 / windows_max.max(1)).clamp(4096, window_max.max(4096));
        let sizes = WindowSizes { base, max: window_max.max(base) };
        Self { sizes, lendable: total.saturating_sub(base * windows_max), lent: 0, producing: 0 }
    }

    /// Opens a window for a new connection.
    #[must_use]
    pub fn open(&self) -> Window {
        Window { limit: self.sizes.base, ..Window::default() }
    }

    /// Takes everything back that was lent to a connection which is gone.
    pub fn close(&mut self, window: &mut Window) {
        self.producing -= u64::from(std::mem::take(&mut window.is_producing));
        self.lent = self.lent.saturating_sub(std::mem::take(&mut window.borrowed));
    }

    /// Raises the window's limit as far as its share allows, or by nothing when it is not worth a message. Returns the
    /// new limit if it is to be announced.
    pub fn top_up(&mut self, window: &mut Window) -> Option<u64> {
        if window.received > 0 && !window.is_producing {
            window.is_producing = true;
            self.producing += 1;
        }
        let share = (self.lendable / self.producing.max(1)).min(self.sizes.max - self.sizes.base);
        // What was lent counts only while it is outstanding.
        let outstanding = window.limit.saturating_sub(window.released);
        let borrowed = outstanding.saturating_sub(self.sizes.base).min(window.borrowed);
        self.lent -= window.borrowed - borrowed;
        window.borrowed = borrowed;
        // A window that was never used stays small: an idle consumer needs none.
        let wanted = if window.received == 0 { 0 } else { share.saturating_sub(window.borrowed) };
        let loan = wanted.min(self.lendable.saturating_sub(self.lent));
        let target = window.released + self.sizes.base + window.borrowed + loan;
        let raise = target.saturating_sub(window.limit);
        let worth = (target - window.released) / 4;
        if raise == 0 || raise < worth {
            return None;
        }
        self.lent += loan;
        window.borrowed += loan;
        window.limit = target;
        Some(target)
    }

    /// Bytes lent now.
    #[must_use]
    pub const fn lent(&self) -> u64 {
        self.lent
    }

    /// The sizes that windows have.
    #[must_use]
    pub const fn sizes(&self) -> WindowSizes {
        self.sizes
    }
}

/// The window of one connection. All numbers are cumulative bytes of attachments.
#[derive(Debug, Default)]
pub struct Window {
    limit: u64,
    received: u64,
    released: u64,
    /// How much of the outstanding bytes is lent on top of the base.
    borrowed: u64,
    is_producing: bool,
}

/// The peer sent more than it was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{received} bytes were produced, {limit} were granted")]
pub struct Exceeded {
    /// In all.
    pub received: u64,
    /// In all.
    pub limit: u64,
}

impl Window {
    /// Counts a request's attachment. A window that is not used up may be overdrawn by it.
    ///
    /// # Errors
    /// When the window was used up before.
    pub fn receive(&mut self, bytes: u64) -> Result<(), Exceeded> {
        if bytes > 0 && self.received >= self.limit {
            return Err(Exceeded { received: self.received + bytes, limit: self.limit });
        }
        self.received += bytes;
        Ok(())
    }

    /// Gives back what is no longer held for a request.
    pub fn release(&mut self, bytes: u64) {
        self.released = (self.released + bytes).min(self.received);
    }

    /// What was announced last.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes that are held for requests under way.
    #[must_use]
    pub const fn held(&self) -> u64 {
        self.received - self.released
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_window_may_be_overdrawn_once() {
        let budget = Budget::new(64 * MIB, 16, 8 * MIB);
        let mut window = budget.open();
        assert_eq!(window.limit(), 2 * MIB);
        assert_eq!(window.receive(2 * MIB - 1), Ok(()));
        assert_eq!(window.receive(5 * MIB), Ok(()), "one request may overdraw");
        assert_eq!(window.receive(1), Err(Exceeded { received: 7 * MIB, limit: 2 * MIB }));
        assert_eq!(window.receive(0), Ok(()), "a request without batches takes nothing");
    }

    #[test]
    fn a_connection_that_produces_gets_more_and_an_idle_one_does_not() {
        let mut budget = Budget::new(64 * MIB, 16, 8 * MIB);
        let (mut busy, mut idle) = (budget.open(), budget.open());
        assert_eq!(budget.top_up(&mut idle), None);
        busy.receive(MIB).unwrap();
        busy.release(MIB);
        assert_eq!(budget.top_up(&mut busy), Some(9 * MIB), "8 MiB on top of what was released");
        assert_eq!(budget.top_up(&mut busy), None, "nothing was released since");
        busy.receive(MIB).unwrap();
        busy.release(MIB);
        assert_eq!(budget.top_up(&mut busy), None, "a small raise is not worth a message");
        busy.receive(MIB).unwrap();
        busy.release(MIB);
        assert_eq!(budget.top_up(&mut busy), Some(11 * MIB));
        assert_eq!(budget.lent(), 6 * MIB);
        budget.close(&mut busy);
        assert_eq!(budget.lent(), 0);
    }

    #[test]
    fn shares_shrink_as_producers_come() {
        let mut budget = Budget::new(64 * MIB, 16, 64 * MIB);
        let mut windows: Vec<Window> = (0..8).map(|_| budget.open()).collect();
        let mut limits = Vec::new();
        for window in &mut windows {
            window.receive(2 * MIB).unwrap();
            window.release(2 * MIB);
            limits.push(budget.top_up(window).unwrap() / MIB);
        }
        // The first one gets all 32 MiB that can be lent, on top of its base and what it has used; the others only their
        // base, because nothing is left.
        assert_eq!(limits, [36, 4, 4, 4, 4, 4, 4, 4]);
        // Once the first one has used up its loan, everybody gets an eighth.
        windows[0].receive(34 * MIB).unwrap();
        windows[0].release(34 * MIB);
        assert_eq!(budget.top_up(&mut windows[0]), Some(36 * MIB + 2 * MIB + 4 * MIB));
        assert_eq!(budget.top_up(&mut windows[1]), Some(8 * MIB));
        assert_eq!(budget.lent(), 8 * MIB);
        for window in &mut windows {
            budget.close(window);
        }
        assert_eq!(budget.lent(), 0);
    }

    proptest! {
        /// However connections come, produce and go: never more lent than there is, and what one connection may still
        /// send is bounded.
        #[test]
        fn never_more_is_lent_than_there_is(
            steps in prop::collection::vec((0..4usize, 0..3u8, 0..4 * MIB), 1..200),
        ) {
            let mut budget = Budget::new(16 * MIB, 4, 8 * MIB);
            let mut windows: Vec<Window> = (0..4).map(|_| budget.open()).collect();
            for (index, action, bytes) in steps {
                let window = &mut windows[index];
                match action {
                    0 => { let _refused = window.receive(bytes); }
                    1 => window.release(bytes),
                    _ => {
                        let before = window.limit();
                        if let Some(limit) = budget.top_up(window) {
                            prop_assert!(limit > before);
                        }
                    }
                }
                prop_assert!(window.limit().saturating_sub(window.released) <= 8 * MIB);
                prop_assert!(budget.lent() <= 8 * MIB);
                let borrowed: u64 = windows.iter().map(|window| window.borrowed).sum();
                prop_assert_eq!(borrowed, budget.lent());
            }
        }
    }
}
