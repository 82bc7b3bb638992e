//! Identities of producers, taken from the controller in blocks.

use std::ops::Range;

use highwater_broker_core::controller::command::{Command, Reply};
use highwater_protocol::error_code::ErrorCode;
use tokio::sync::Mutex;

use super::service::ControllerHandle;
use crate::api::ApiError;

/// Identities that a broker takes from the controller at a time. What is left of them when it ends is never used.
const IDS_AT_A_TIME: u32 = 1000;

/// Identities that this broker may give out.
#[derive(Debug, Default)]
pub(crate) struct ProducerIds(Mutex<Range<u64>>);

impl ProducerIds {
    /// An identity that nobody has had. Dropping the future gives none out.
    pub(crate) async fn next(&self, controller: &ControllerHandle) -> Result<u64, ApiError> {
        // Held while the controller is asked, so that many who come at once cost one question.
        let mut ids = self.0.lock().await;
        if let Some(id) = ids.next() {
            return Ok(id);
        }
        let unregistered = || {
            ApiError::new(
                ErrorCode::NoController,
                format!(
                    "broker {} is not registered at the moment and cannot give identities out",
                    controller.node_id()
                ),
            )
        };
        let (node_id, image) = (controller.node_id(), controller.image());
        let broker_epoch =
            image.broker(node_id).map(|broker| broker.broker_epoch).ok_or_else(unregistered)?;
        let command = Command::AllocateProducerIds { node_id, broker_epoch, count: IDS_AT_A_TIME };
        let reply = controller.propose(command, false).await.map_err(|error| match error.code {
            // It is registering anew, and will be known again in a moment.
            ErrorCode::StaleBrokerEpoch => unregistered(),
            _ => error,
        })?;
        let Reply::ProducerIds { first, count } = reply else {
            return Err(ApiError::new(ErrorCode::Internal, format!("the controller answered {reply:?}")));
        };
        *ids = first.get()..first.get() + u64::from(count);
        ids.next().ok_or_else(|| ApiError::new(ErrorCode::Internal, "the controller gave no identity out"))
    }
}
