//! A gate in front of every processor call, for runs in which one call may be the process's last.

use crate::dead_letter::Reason;
use crate::record::Record;

/// Decides about each processor call before it begins.
pub(crate) trait CallGate: Send + Sync {
    /// A guard that is dropped when the attempt ends.
    type Turn: Send;

    fn take(&self, record: &Record) -> impl Future<Output = Admission<Self::Turn>> + Send;

    /// Makes the call. `runs_elsewhere` returns whether the processor works on another thread, which is known
    /// once the call has begun.
    fn watch<F: Future + Send>(
        &self,
        turn: Self::Turn,
        call: F,
        runs_elsewhere: impl Fn() -> bool + Send,
    ) -> impl Future<Output = F::Output> + Send
    where
        F::Output: Send;
}

/// The gate's decision about a record.
pub(crate) enum Admission<T> {
    Attempt(T),
    /// The record becomes a dead letter.
    GivenUp(Reason),
    /// The shard stopped while the record waited: the record is released without an attempt.
    Stopped,
}
