//! Changes on their way to the controller, wherever it is, and into its log.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use highwater_broker_core::controller::codec::{
    CodecError, decode_command, decode_outcome, encode_command, encode_outcome,
};
use highwater_broker_core::controller::command::{BATCH_COMMANDS_MAX, Command, Refusal, Reply};
use highwater_broker_core::controller::image::ClusterImage;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::messages::{ProposeReply, ProposeRequest};
use openraft::error::{ClientWriteError, RaftError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::warn;

use super::consensus::Change;
use super::core::Core;
use crate::api::ApiError;

/// Proposals that may wait. Whoever proposes more waits for room.
pub(super) const PROPOSALS_MAX: usize = 1024;
/// Bytes of commands in one entry of the log, unless one alone is larger.
const ENTRY_BYTES_MAX: usize = 512 << 10;
/// How long a change is tried.
pub(super) const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one attempt may take before it is made again, maybe elsewhere.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two attempts, unless the controller changes earlier.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// What came of a command, and the version of the image that has it.
pub(crate) type Decided = (Result<Reply, Refusal>, u64);

/// A command that waits for its place in the log.
#[derive(Debug)]
pub(crate) struct Proposal {
    command: Command,
    reply: oneshot::Sender<Result<Decided, ApiError>>,
}

impl Core {
    /// Has a command carried out by the controller, wherever it is.
    ///
    /// Returns when the change is on stable storage of a majority and in the image here. Dropping the future does not take
    /// the proposal back.
    pub(crate) async fn propose(&self, command: Command) -> Result<Reply, ApiError> {
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        let (mut view, mut unsure) = (self.view.subscribe(), false);
        loop {
            view.borrow_and_update();
            match self.propose_once(&command, deadline).await {
                Ok((outcome, version)) => {
                    self.wait_for_version(version, deadline).await?;
                    return self.settle(&command, outcome, unsure);
                }
                Err(error) if !is_worth_another_try(error.code) => return Err(error),
                Err(error) => {
                    unsure |= error.code != ErrorCode::NotController;
                    if Instant::now() + RETRY_PAUSE >= deadline {
                        return Err(error);
                    }
                }
            }
            let _changed_or_not = tokio::time::timeout(RETRY_PAUSE, view.changed()).await;
        }
    }

    /// One attempt, here or at the controller that is known.
    async fn propose_once(&self, command: &Command, deadline: Instant) -> Result<Decided, ApiError> {
        let deadline = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
        if self.view.borrow().leads {
            return self.propose_here(command.clone(), deadline).await;
        }
        let address = self.controller_address().ok_or_else(no_controller)?;
        let encoded = encode_command(command).map_err(|error| undecodable(&error))?;
        let request = ProposeRequest { command: Bytes::from(encoded), validate_only: false };
        let reply = self.links.request(&address, &request, deadline).await;
        let reply = reply.map_err(|error| error.into_api())?;
        let outcome = decode_outcome(&reply.outcome).map_err(|error| undecodable(&error))?;
        Ok((outcome, reply.version))
    }

    /// A command for the log, if we are the controller.
    pub(crate) async fn propose_here(
        &self,
        command: Command,
        deadline: Instant,
    ) -> Result<Decided, ApiError> {
        // An older broker cannot read what is of a later level: it does not get into the log, not even to be refused there.
        let image = self.image();
        if let Err(refusal @ Refusal::Level { .. }) = image.check_level(&command) {
            return Ok((Err(refusal), image.version));
        }
        let decided = async {
            let (reply, receiver) = oneshot::channel();
            self.proposals.send(Proposal { command, reply }).await.map_err(|_| stopped())?;
            receiver.await.map_err(|_| stopped())?
        };
        tokio::time::timeout_at(deadline, decided).await.map_err(|_| no_majority())?
    }

    /// A command that another broker proposes.
    pub(crate) async fn propose_for(&self, request: &ProposeRequest) -> Result<ProposeReply, ApiError> {
        let command = decode_command(&request.command).map_err(|error| undecodable(&error))?;
        if matches!(command, Command::Batch(_)) {
            return Err(ApiError::invalid("commands are put into batches by the controller"));
        }
        if request.validate_only {
            let (outcome, version) = self.try_out(&command);
            return answer(&outcome, version);
        }
        self.check_leads()?;
        let (outcome, version) = self.propose_here(command, Instant::now() + ATTEMPT_TIMEOUT).await?;
        answer(&outcome, version)
    }

    /// What would come of a command.
    pub(crate) fn try_out(&self, command: &Command) -> Decided {
        let mut image = ClusterImage::clone(&self.image());
        let outcome = image.apply(command);
        (outcome, image.version)
    }

    /// Refuses what only the controller can do, if we are not.
    pub(crate) fn check_leads(&self) -> Result<(), ApiError> {
        let view = self.view.borrow();
        if view.leads {
            return Ok(());
        }
        Err(ApiError::new(
            ErrorCode::NotController,
            match view.controller {
                Some(controller) => format!("broker {controller} is the controller"),
                None => "there is no controller at the moment".to_owned(),
            },
        ))
    }

    /// Waits until the image here has a version.
    pub(crate) async fn wait_for_version(&self, version: u64, deadline: Instant) -> Result<(), ApiError> {
        let mut versions = self.shown.versions();
        let shown = versions.wait_for(|shown| *shown >= version);
        match tokio::time::timeout_at(deadline, shown).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(stopped()),
            Err(_) => Err(ApiError::new(
                ErrorCode::NoController,
                format!(
                    "the change is decided, but version {version} of the image has not arrived here in time"
                ),
            )),
        }
    }

    /// The outcome for whoever proposed. `unsure`: an earlier attempt may have been carried out, so that this one may have
    /// found its work done.
    fn settle(
        &self,
        command: &Command,
        outcome: Result<Reply, Refusal>,
        unsure: bool,
    ) -> Result<Reply, ApiError> {
        match outcome {
            Ok(reply) => Ok(reply),
            Err(refusal) => {
                if unsure && let Some(reply) = self.done_before(command, &refusal) {
                    return Ok(reply);
                }
                Err(refused(&refusal))
            }
        }
    }

    fn done_before(&self, command: &Command, refusal: &Refusal) -> Option<Reply> {
        match (command, refusal.code()) {
            (Command::CreateTopic { topic_id, .. }, ErrorCode::TopicExists | ErrorCode::Internal) => {
                let image = self.image();
                let topic = image.topic(*topic_id)?;
                Some(Reply::Created {
                    topic_id: *topic_id,
                    partitions: topic.partitions.len() as u32,
                    replication: topic.replication,
                })
            }
            (Command::DeleteTopic { topic_id: Some(topic_id), .. }, ErrorCode::UnknownTopic) => {
                self.image().topic(*topic_id).is_none().then_some(Reply::Deleted { topic_id: *topic_id })
            }
            _ => None,
        }
    }
}

fn answer(outcome: &Result<Reply, Refusal>, version: u64) -> Result<ProposeReply, ApiError> {
    let outcome = encode_outcome(outcome).map_err(|error| undecodable(&error))?;
    Ok(ProposeReply { outcome: outcome.into(), version })
}

fn undecodable(error: &CodecError) -> ApiError {
    ApiError::new(error.code(), error.to_string())
}

/// What a refusal is on the wire.
pub(crate) fn refused(refusal: &Refusal) -> ApiError {
    ApiError::new(refusal.code(), refusal.to_string())
}

fn is_worth_another_try(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::NoController
            | ErrorCode::NotController
            | ErrorCode::ShuttingDown
            | ErrorCode::TooManyConnections
            | ErrorCode::IdleTimeout
    )
}

pub(super) fn no_controller() -> ApiError {
    ApiError::new(
        ErrorCode::NoController,
        "there is no controller: too few of the voters run or reach each other; start the others",
    )
}

fn no_majority() -> ApiError {
    ApiError::new(
        ErrorCode::NoController,
        "the controller does not reach a majority of the voters in time; start the others",
    )
}

pub(super) fn stopped() -> ApiError {
    ApiError::new(ErrorCode::ShuttingDown, "the controller has stopped")
}

/// Puts what is proposed into the log: what waits together becomes one entry. Ends with the last sender.
pub(super) async fn run(core: Arc<Core>, mut proposals: mpsc::Receiver<Proposal>) {
    let mut waiting = Vec::new();
    loop {
        if waiting.is_empty() && proposals.recv_many(&mut waiting, BATCH_COMMANDS_MAX).await == 0 {
            return;
        }
        let (commands, replies) = take_entry(&mut waiting);
        let written = tokio::time::timeout(ATTEMPT_TIMEOUT, write(&core, commands)).await;
        match written.unwrap_or_else(|_| Err(no_majority())) {
            Ok((outcomes, version)) => {
                for (reply, outcome) in replies.into_iter().zip(outcomes) {
                    let _gone = reply.send(Ok((outcome, version)));
                }
            }
            Err(error) => {
                for reply in replies {
                    let _gone = reply.send(Err(error.clone()));
                }
            }
        }
    }
}

type Replies = Vec<oneshot::Sender<Result<Decided, ApiError>>>;

/// As many proposals as one entry takes, in order.
fn take_entry(waiting: &mut Vec<Proposal>) -> (Vec<Command>, Replies) {
    let mut bytes = 0;
    let mut count = 0;
    for proposal in waiting.iter() {
        bytes += encode_command(&proposal.command).map_or(0, |bytes| bytes.len());
        if bytes > ENTRY_BYTES_MAX && count > 0 {
            break;
        }
        count += 1;
    }
    waiting.drain(..count).map(|proposal| (proposal.command, proposal.reply)).unzip()
}

/// One entry of the log. The outcome of each command, and the version of the image after all of them.
async fn write(
    core: &Core,
    mut commands: Vec<Command>,
) -> Result<(Vec<Result<Reply, Refusal>>, u64), ApiError> {
    let raft = core.engine()?;
    let alone = commands.len() == 1;
    let command = match commands.pop() {
        Some(command) if alone => command,
        Some(command) => {
            commands.push(command);
            Command::Batch(commands)
        }
        None => return Ok((Vec::new(), 0)),
    };
    let command = encode_command(&command).map_err(|error| undecodable(&error))?;
    let written = raft.client_write(Change { command }).await;
    let answer = written.map_err(|error| match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => {
            ApiError::new(ErrorCode::NotController, "this broker is not the controller any more")
        }
        RaftError::APIError(error) => ApiError::new(ErrorCode::Internal, error.to_string()),
        RaftError::Fatal(error) => {
            warn!(%error, "a change was not recorded");
            ApiError::new(
                ErrorCode::StorageError,
                format!("the change could not be recorded, check the disk: {error}"),
            )
        }
    })?;
    let version = answer.data.version;
    let outcome = decode_outcome(&answer.data.outcome).map_err(|error| undecodable(&error))?;
    match outcome {
        outcome if alone => Ok((vec![outcome], version)),
        Ok(Reply::Batch(outcomes)) => Ok((outcomes, version)),
        Ok(_) => Err(ApiError::new(ErrorCode::Internal, "a batch has another outcome than a batch's")),
        Err(refusal) => Err(refused(&refusal)),
    }
}
