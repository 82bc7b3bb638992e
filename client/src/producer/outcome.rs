//! What the results of a produce request mean for its batches.

use highwater_protocol::error_code::{Duty, ErrorCode};
use highwater_protocol::ids::{Offset, PartitionId};
use highwater_protocol::messages::{ProduceResult, Stage};

use super::delivery::Acknowledged;
use super::sequencer::Verdict;
use crate::error::{Error, ErrorKind};

/// The verdict on one batch. `error` names topic, partition and address.
pub(super) fn verdict(
    result: ProduceResult,
    partition: PartitionId,
    context: impl FnOnce(Error) -> Error,
) -> Verdict<Acknowledged> {
    let code = ErrorCode::from_code(result.error);
    if code.is_none() || code == ErrorCode::AlreadyApplied {
        // Appended so long ago that its place is forgotten.
        let base_offset = if code.is_none() { result.base_offset } else { u64::MAX };
        return Verdict::Acknowledged(Acknowledged {
            partition,
            base_offset: Offset(base_offset),
            append_time: result.append_time,
            stage: Stage::try_from(result.stage).unwrap_or(Stage::Accepted),
            replicas_counted: result.replicas_counted,
            replicas_total: result.replicas_total,
        });
    }
    let next_number = (code == ErrorCode::OutOfOrder).then_some(result.next_number);
    of_code(code, context(Error::from_code(code, result.message)), next_number)
}

/// The verdict on every batch of a request that was answered with an error as a whole.
pub(super) fn verdict_on_all(error: &Error, context: impl FnOnce(Error) -> Error) -> Verdict<Acknowledged> {
    match error.code() {
        Some(code) => of_code(code, context(error.clone()), None),
        // The reply does not decode: whatever it said is lost.
        None => Verdict::Unknown(context(unknown(error))),
    }
}

fn of_code(code: ErrorCode, error: Error, next_number: Option<u64>) -> Verdict<Acknowledged> {
    match code {
        // The first two say so; of a defect, or of a code from the future, it is not known what came before it.
        ErrorCode::TimedOut | ErrorCode::OutcomeUnknown => Verdict::Unknown(error),
        ErrorCode::Internal | ErrorCode::Unknown(_) => Verdict::Unknown(unknown(&error)),
        ErrorCode::SequenceGap | ErrorCode::UnknownProducer => Verdict::Gap(error),
        ErrorCode::ProducerFenced => Verdict::Fenced(error),
        _ => Verdict::Refused { error, retriable: code.duty() != Duty::Fail, next_number },
    }
}

fn unknown(error: &Error) -> Error {
    error.clone().becoming(ErrorKind::OutcomeUnknown, "it is not known what became of the batch")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: ErrorCode) -> Verdict<Acknowledged> {
        let result = ProduceResult { error: code.code(), next_number: 4, ..ProduceResult::default() };
        verdict(result, PartitionId(0), |error| error)
    }

    #[test]
    fn only_what_says_that_nothing_was_appended_is_a_refusal() {
        for code in ErrorCode::ALL {
            let verdict = of(*code);
            match code {
                ErrorCode::None => assert!(matches!(verdict, Verdict::Acknowledged(_))),
                ErrorCode::AlreadyApplied => {
                    let Verdict::Acknowledged(acknowledged) = verdict else { panic!("{code}") };
                    assert_eq!(acknowledged.base_offset.get(), u64::MAX, "its place is forgotten");
                }
                ErrorCode::SequenceGap | ErrorCode::UnknownProducer => {
                    assert!(matches!(verdict, Verdict::Gap(_)));
                }
                ErrorCode::ProducerFenced => assert!(matches!(verdict, Verdict::Fenced(_))),
                ErrorCode::TimedOut | ErrorCode::OutcomeUnknown | ErrorCode::Internal => {
                    let Verdict::Unknown(error) = verdict else { panic!("{code}") };
                    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
                }
                _ => {
                    let Verdict::Refused { retriable, next_number, .. } = verdict else { panic!("{code}") };
                    assert_eq!(retriable, code.is_retriable(), "{code}");
                    assert_eq!(next_number, (*code == ErrorCode::OutOfOrder).then_some(4));
                }
            }
        }
        assert!(matches!(of(ErrorCode::Unknown(1234)), Verdict::Unknown(_)));
    }
}
