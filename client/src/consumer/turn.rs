//! Requests of one driver over one link go out in order, though each has a task of its own: subscription ids have to grow
//! on a connection, and nothing may overtake the subscribe request that it is about.

use highwater_protocol::api::Request;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::Error;
use crate::wire::{Connection, Sent};

/// The right to send, once the request before has been sent or given up. Dropping it passes it on.
#[derive(Debug)]
pub(super) struct Turn {
    before: Option<oneshot::Receiver<()>>,
    _done: oneshot::Sender<()>,
}

impl Turn {
    /// The turn after `last`, which becomes the last one.
    pub(super) fn after(last: &mut Option<oneshot::Receiver<()>>) -> Self {
        let (done, sent) = oneshot::channel();
        Self { before: last.replace(sent), _done: done }
    }

    /// Sends a request in its turn. Cancelled, the request was not sent, and the next one no longer waits for those before:
    /// to be done only with the whole driver.
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub(super) async fn send<R: Request>(
        self,
        connection: &Connection,
        request: &R,
        deadline: Instant,
    ) -> Result<Sent<R>, Error> {
        if let Some(before) = self.before {
            // It is never sent to: its end is the sign.
            let _ = before.await;
        }
        connection.send(request, deadline).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_comes_when_the_one_before_is_over() {
        let mut last = None;
        let first = Turn::after(&mut last);
        let mut second = Turn::after(&mut last);
        assert!(first.before.is_none(), "nobody is before the first");
        let before = second.before.as_mut().unwrap();
        assert_eq!(before.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        drop(first);
        assert_eq!(before.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }
}
