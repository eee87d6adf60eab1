//! The input of a shard: the stream of batches, and the records of the newest batch that are not admitted
//! yet.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;

use super::super::Batch;
use super::super::capacity::Reservation;
use super::super::unread::{NextRecord, Unread};
use crate::record::Record;

pub(super) struct Intake<S> {
    batches: S,
    batch: Unread,
    /// True if memory is reserved for the records of the batch.
    is_reserved: bool,
    /// True once the stream of batches has ended.
    ended: bool,
}

/// A batch that has just been read.
pub(super) struct Arrival {
    pub(super) read_until: Option<std::time::SystemTime>,
    pub(super) is_empty: bool,
    pub(super) reservation: Option<Reservation>,
}

impl<S: Stream<Item = Batch> + Unpin> Intake<S> {
    pub(super) fn new(batches: S) -> Self {
        Intake {
            batches,
            batch: Unread::default(),
            is_reserved: false,
            ended: false,
        }
    }

    /// Takes the next record of the batch.
    #[inline]
    pub(super) fn next(&mut self) -> Option<NextRecord> {
        self.batch.next()
    }

    /// Returns whether all records of the batch are taken.
    #[inline]
    pub(super) fn is_batch_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Returns the records of the batch behind the one that was taken last.
    #[inline]
    pub(super) fn behind(&self) -> &[Record] {
        self.batch.behind()
    }

    #[inline]
    pub(super) fn is_reserved(&self) -> bool {
        self.is_reserved
    }

    /// Reads the next batch. Returns `None` if no batch is available now, or none comes any more.
    pub(super) fn poll_batch(&mut self, cx: &mut Context<'_>) -> Option<Arrival> {
        if self.ended {
            return None;
        }
        match Pin::new(&mut self.batches).poll_next(cx) {
            Poll::Ready(Some(batch)) => {
                self.is_reserved = batch.reservation.is_some();
                let arrival = Arrival {
                    read_until: batch.read_until,
                    is_empty: batch.records.is_empty(),
                    reservation: batch.reservation,
                };
                self.batch = Unread::new(batch.records);
                Some(arrival)
            }
            Poll::Ready(None) => {
                self.ended = true;
                None
            }
            Poll::Pending => None,
        }
    }

    /// Returns true if no more records will come.
    pub(super) fn is_over(&self) -> bool {
        self.ended && self.batch.is_empty()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    pub(super) fn batch(&self) -> &Unread {
        &self.batch
    }
}
