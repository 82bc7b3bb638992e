//! The way to a group's coordinator.

use std::sync::Arc;
use std::time::Duration;

use highwater_protocol::api::Request;
use highwater_protocol::error_code::{Duty, ErrorCode};
use highwater_protocol::messages::FindCoordinatorRequest;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::client::{Client, Repeat};
use crate::error::{Error, ErrorKind};

/// How long a coordinator may leave a request unanswered before it is looked for elsewhere.
const ATTEMPT: Duration = Duration::from_secs(3);

/// Asks the coordinator of a group, wherever it is.
#[derive(Debug)]
pub(crate) struct Coordinator {
    client: Client,
    group: Arc<str>,
    /// Where it was when it was last heard of.
    known: Mutex<Option<String>>,
}

impl Coordinator {
    pub(crate) fn new(client: Client, group: &str) -> Self {
        Self { client, group: group.into(), known: Mutex::default() }
    }

    /// Asks again after errors that say so, until `deadline`. `check` finds the errors that a reply has inside. Requests
    /// for coordinators are such that doing them twice is doing them once.
    ///
    /// # Errors
    /// What the coordinator said last, or what kept it from being asked.
    pub(crate) async fn ask<R: Request>(
        &self,
        request: &R,
        deadline: Instant,
        check: impl Fn(&R::Response) -> Result<(), Error>,
    ) -> Result<R::Response, Error> {
        let mut backoff = self.client.backoff();
        loop {
            let attempt = deadline.min(Instant::now() + ATTEMPT);
            let asked = self.ask_once(request, attempt).await;
            let error = match asked.and_then(|reply| check(&reply).map(|()| reply)) {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            self.take_error(&error);
            let again = may_pass(&error) && self.client.pause(&mut backoff, deadline).await;
            if !again {
                return Err(error.with_group(&self.group));
            }
        }
    }

    /// Asks once.
    ///
    /// # Errors
    /// What the coordinator said, or what kept it from being asked in time.
    pub(crate) async fn ask_once<R: Request>(
        &self,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, Error> {
        let asked = async {
            let address = self.address(deadline).await?;
            let connection = self.client.pool().get(&address).await?;
            let (reply, _) = connection.request(request, deadline).await?;
            Ok(reply)
        };
        let asked = match tokio::time::timeout_at(deadline, asked).await {
            Ok(asked) => asked,
            Err(_) => Err(Error::new(ErrorKind::TimedOut, "the coordinator did not answer in time")),
        };
        asked.map_err(|error: Error| {
            self.take_error(&error);
            error.with_group(&self.group)
        })
    }

    /// Forgets where the coordinator was when an error says that it may be elsewhere.
    fn take_error(&self, error: &Error) {
        let elsewhere = match error.code() {
            None => may_pass(error),
            Some(ErrorCode::NotCoordinator | ErrorCode::ShuttingDown) => true,
            Some(code) => matches!(code.duty(), Duty::RefreshMetadata | Duty::Reconnect),
        };
        if elsewhere {
            self.known.lock().take();
        }
    }

    async fn address(&self, deadline: Instant) -> Result<String, Error> {
        if let Some(known) = self.known.lock().clone() {
            return Ok(known);
        }
        let request = FindCoordinatorRequest { groups: vec![self.group.as_ref().to_owned()] };
        let reply = self.client.ask_any(&request, Repeat::Freely, deadline).await?;
        let [coordinator] = reply.coordinators.as_slice() else {
            let text = format!("one coordinator was asked for, {} came", reply.coordinators.len());
            return Err(Error::new(ErrorKind::Protocol, text));
        };
        check(coordinator.error, &coordinator.message)?;
        self.client.pool().encourage(&coordinator.address);
        *self.known.lock() = Some(coordinator.address.clone());
        Ok(coordinator.address.clone())
    }
}

/// Whether asking again may help. What may have been done already is asked for again too: doing it twice is doing it
/// once.
pub(crate) fn may_pass(error: &Error) -> bool {
    error.is_retriable() || error.kind() == ErrorKind::OutcomeUnknown
}

/// An error inside a reply.
pub(crate) fn check(code: u32, message: &str) -> Result<(), Error> {
    let code = ErrorCode::from_code(code);
    if code.is_none() { Ok(()) } else { Err(Error::from_code(code, message)) }
}
