//! Acknowledgements: one for a whole batch, shared by the deliveries of its records.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use highwater_protocol::ids::{Offset, PartitionId};
use highwater_protocol::messages::Stage;
use parking_lot::Mutex;

use crate::error::Error;
use crate::record::Receipt;

/// What the broker said about a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Acknowledged {
    pub(super) partition: PartitionId,
    pub(super) base_offset: Offset,
    pub(super) append_time: i64,
    pub(super) stage: Stage,
    pub(super) replicas_counted: u32,
    pub(super) replicas_total: u32,
}

/// The acknowledgement of a batch: empty until it is known, then fixed.
#[derive(Default)]
pub(super) struct BatchAck {
    outcome: OnceLock<Result<Acknowledged, Error>>,
    /// Who waits. A delivery has one slot at the most.
    wakers: Mutex<Vec<Option<Waker>>>,
}

impl BatchAck {
    /// Fixes the outcome and wakes everyone who waits for it.
    pub(super) fn complete(&self, outcome: Result<Acknowledged, Error>) {
        if self.outcome.set(outcome).is_err() {
            return;
        }
        let wakers = std::mem::take(&mut *self.wakers.lock());
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    fn receipt(&self, index: u32) -> Option<Result<Receipt, Error>> {
        let outcome = self.outcome.get()?;
        Some(outcome.as_ref().map(|ack| ack.receipt(index)).map_err(Clone::clone))
    }

    /// Whether the outcome is known; if not, `context` is woken when it is.
    fn poll(&self, slot: &mut Option<usize>, context: &Context<'_>) -> bool {
        if self.outcome.get().is_some() {
            return true;
        }
        let mut wakers = self.wakers.lock();
        // The outcome is set before the wakers are taken: seen from under the lock, either it is there or this waker
        // will be taken.
        if self.outcome.get().is_some() {
            return true;
        }
        match slot.and_then(|slot| wakers.get_mut(slot)) {
            Some(Some(waker)) => waker.clone_from(context.waker()),
            Some(empty) => *empty = Some(context.waker().clone()),
            None => {
                *slot = Some(wakers.len());
                wakers.push(Some(context.waker().clone()));
            }
        }
        false
    }

    fn forget(&self, slot: Option<usize>) {
        let Some(slot) = slot else { return };
        if let Some(waker) = self.wakers.lock().get_mut(slot) {
            *waker = None;
        }
    }
}

impl fmt::Debug for BatchAck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchAck").field("outcome", &self.outcome.get()).finish_non_exhaustive()
    }
}

impl Acknowledged {
    fn receipt(&self, index: u32) -> Receipt {
        Receipt {
            partition: self.partition,
            // Offsets of a batch are consecutive; only a broken broker could name one out of range.
            offset: Offset(self.base_offset.get().saturating_add(u64::from(index))),
            append_time: self.append_time,
            stage: self.stage,
            replicas_counted: self.replicas_counted,
            replicas_total: self.replicas_total,
        }
    }
}

/// The acknowledgement of one record, to be awaited: it is shared by the whole batch.
///
/// Dropping it does not take the record back. Cancel safe: it can be polled for a while, put aside, and awaited later.
///
/// ```no_run
/// # async fn example(producer: &highwater_client::Producer) -> Result<(), highwater_client::Error> {
/// use highwater_client::{ErrorKind, ProducerRecord};
///
/// let delivery = producer.send(ProducerRecord::new("orders").value("42 apples")).await?;
/// match delivery.await {
///     Ok(receipt) => println!("offset {} is {:?}", receipt.offset, receipt.stage),
///     Err(error) if error.kind() == ErrorKind::OutcomeUnknown => println!("it may be there or not"),
///     Err(error) => println!("it is not there: {error}"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a record is only known to be safe once its delivery resolved"]
pub struct Delivery {
    ack: Arc<BatchAck>,
    index: u32,
    slot: Option<usize>,
}

impl Delivery {
    pub(super) const fn new(ack: Arc<BatchAck>, index: u32) -> Self {
        Self { ack, index, slot: None }
    }

    pub(super) const fn ack(&self) -> &Arc<BatchAck> {
        &self.ack
    }

    pub(super) const fn index(&self) -> u32 {
        self.index
    }

    /// The outcome, if it is known by now.
    #[must_use]
    pub fn outcome(&self) -> Option<Result<Receipt, Error>> {
        self.ack.receipt(self.index)
    }
}

impl Future for Delivery {
    type Output = Result<Receipt, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if !this.ack.poll(&mut this.slot, context) {
            return Poll::Pending;
        }
        this.ack.receipt(this.index).map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.ack.forget(self.slot);
    }
}

/// Consecutive records of a call that travel in one batch.
#[derive(Debug)]
struct Run {
    ack: Arc<BatchAck>,
    first_index: u32,
    count: usize,
}

/// The acknowledgement of the records of one [`Producer::send_batch`](crate::Producer::send_batch).
///
/// Dropping it does not take the records back. Cancel safe.
#[derive(Debug)]
#[must_use = "records are only known to be safe once their delivery resolved"]
pub struct BatchDelivery {
    runs: Vec<Run>,
    /// Why the records after the last run were not admitted.
    refused: Option<(Error, usize)>,
    /// The first run that is not known yet, and this delivery's place among those who wait for it.
    waiting_for: usize,
    slot: Option<usize>,
}

impl BatchDelivery {
    pub(super) const fn new() -> Self {
        Self { runs: Vec::new(), refused: None, waiting_for: 0, slot: None }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Notes one more record; `ack` is only cloned for the first of a run.
    #[inline]
    pub(super) fn push(&mut self, ack: &Arc<BatchAck>, index: u32) {
        if let Some(run) = self.runs.last_mut() {
            let next = run.first_index as usize + run.count;
            if Arc::ptr_eq(&run.ack, ack) && next == index as usize {
                run.count += 1;
                return;
            }
        }
        self.runs.push(Run { ack: Arc::clone(ack), first_index: index, count: 1 });
    }

    pub(super) fn refuse(&mut self, error: Error, count: usize) {
        self.refused = Some((error, count));
    }
}

impl Future for BatchDelivery {
    type Output = BatchReceipt;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        while let Some(run) = this.runs.get(this.waiting_for) {
            if !run.ack.poll(&mut this.slot, context) {
                return Poll::Pending;
            }
            this.waiting_for += 1;
            this.slot = None;
        }
        let mut receipts: Vec<RunReceipt> = Vec::with_capacity(this.runs.len() + 1);
        let mut first = 0;
        for run in &this.runs {
            let Some(result) = run.ack.receipt(run.first_index) else { continue };
            receipts.push(RunReceipt { records: first..first + run.count, result });
            first += run.count;
        }
        if let Some((error, count)) = this.refused.take() {
            receipts.push(RunReceipt { records: first..first + count, result: Err(error) });
        }
        Poll::Ready(BatchReceipt { runs: receipts })
    }
}

impl Drop for BatchDelivery {
    fn drop(&mut self) {
        if let Some(run) = self.runs.get(self.waiting_for) {
            run.ack.forget(self.slot);
        }
    }
}

/// What became of the records of one [`Producer::send_batch`](crate::Producer::send_batch).
#[derive(Debug, Clone)]
#[must_use = "some of the records may have failed"]
pub struct BatchReceipt {
    runs: Vec<RunReceipt>,
}

/// What became of consecutive records that travelled in one batch.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RunReceipt {
    /// Which records, by their place in the call, from 0.
    pub records: Range<usize>,
    /// The receipt of the first of them, the others have the offsets after it; or why they failed.
    pub result: Result<Receipt, Error>,
}

impl BatchReceipt {
    /// What became of each record, in the order of the call, without gaps.
    #[must_use]
    pub fn runs(&self) -> &[RunReceipt] {
        &self.runs
    }

    /// How many records were acknowledged.
    #[must_use]
    pub fn acknowledged_count(&self) -> usize {
        self.runs.iter().filter(|run| run.result.is_ok()).map(|run| run.records.len()).sum()
    }

    /// This, if every record was acknowledged.
    ///
    /// # Errors
    /// The first failure.
    pub fn into_result(self) -> Result<Self, Error> {
        match self.runs.iter().find_map(|run| run.result.as_ref().err()) {
            Some(error) => Err(error.clone()),
            None => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use futures_util::task::noop_waker_ref;

    fn acknowledged(base_offset: u64) -> Result<Acknowledged, Error> {
        Ok(Acknowledged {
            partition: PartitionId(3),
            base_offset: Offset(base_offset),
            append_time: 5,
            stage: Stage::Flushed,
            replicas_counted: 1,
            replicas_total: 1,
        })
    }

    fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        Pin::new(future).poll(&mut Context::from_waker(noop_waker_ref()))
    }

    #[test]
    fn deliveries_share_the_acknowledgement_and_add_their_index() {
        let ack = Arc::new(BatchAck::default());
        let mut third = Delivery::new(Arc::clone(&ack), 2);
        assert!(poll(&mut third).is_pending());
        assert!(poll(&mut third).is_pending());
        assert_eq!(ack.wakers.lock().len(), 1, "polling again takes no second slot");
        assert!(third.outcome().is_none());
        ack.complete(acknowledged(100));
        let Poll::Ready(Ok(receipt)) = poll(&mut third) else { panic!("not ready") };
        assert_eq!((receipt.partition, receipt.offset), (PartitionId(3), Offset(102)));
        ack.complete(Err(Error::new(ErrorKind::Closed, "too late")));
        assert!(third.outcome().unwrap().is_ok(), "an outcome is fixed");
    }

    #[test]
    fn a_batch_receipt_covers_every_record_in_order() {
        let (a, b) = (Arc::new(BatchAck::default()), Arc::new(BatchAck::default()));
        let mut delivery = BatchDelivery::new();
        for (ack, index) in [(&a, 7), (&a, 8), (&b, 0), (&a, 9)] {
            delivery.push(ack, index);
        }
        delivery.refuse(Error::new(ErrorKind::RecordTooLarge, "too large"), 2);
        b.complete(Err(Error::new(ErrorKind::OutcomeUnknown, "lost")));
        assert!(poll(&mut delivery).is_pending());
        a.complete(acknowledged(10));
        let Poll::Ready(receipt) = poll(&mut delivery) else { panic!("not ready") };
        let seen: Vec<_> = receipt
            .runs()
            .iter()
            .map(|run| {
                (run.records.clone(), run.result.as_ref().map(|r| r.offset.get()).map_err(Error::kind))
            })
            .collect();
        let expected = [
            (0..2, Ok(17)),
            (2..3, Err(ErrorKind::OutcomeUnknown)),
            (3..4, Ok(19)),
            (4..6, Err(ErrorKind::RecordTooLarge)),
        ];
        assert_eq!(seen, expected);
        assert_eq!(receipt.acknowledged_count(), 3);
        assert_eq!(receipt.into_result().unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    }
}
