//! Whether this broker has heard of everything that was decided: asked before it says that something does not exist.

use std::time::Duration;

use highwater_protocol::messages::MetadataRequest;
use tokio::time::Instant;

use super::core::Core;
use super::proposals::no_controller;
use crate::api::ApiError;

/// Less than a client waits for an answer about metadata before it asks another broker.
const CATCH_UP_TIMEOUT: Duration = Duration::from_millis(500);

impl Core {
    /// Waits until the image here has all that the controller had shown anybody when this was called. Those who ask at the
    /// same time share the question. Cancel-safe.
    ///
    /// # Errors
    /// `NoController`: there is none, or it could not be asked in time.
    pub(crate) async fn catch_up(&self) -> Result<(), ApiError> {
        let arrived = Instant::now();
        let deadline = arrived + CATCH_UP_TIMEOUT;
        // What the controller decides is in its own image before anybody hears of it.
        if self.view.borrow().leads {
            return Ok(());
        }
        let asked = tokio::time::timeout_at(deadline, self.caught_up.lock());
        let mut caught_up = asked.await.map_err(|_| no_controller())?;
        if caught_up.is_some_and(|began| began >= arrived) {
            return Ok(());
        }
        let began = Instant::now();
        let address = self.controller_address().ok_or_else(no_controller)?;
        let reply = self.links.request(&address, &MetadataRequest::default(), deadline).await;
        let version = reply.map_err(|error| error.into_api())?.version;
        self.wait_for_version(version, deadline).await?;
        *caught_up = Some(began);
        Ok(())
    }
}
