//! Whom to ask before a handler is called, where one call may be the process's last.

use crate::dead_letter::Reason;
use crate::record::Record;

/// Asked before each handler call.
pub(crate) trait CallGate: Send + Sync {
    /// Ends with the attempt.
    type Turn: Send;

    fn take(&self, record: &Record) -> impl Future<Output = Admission<Self::Turn>> + Send;

    /// Makes the call. `runs_elsewhere`: what the handler does is done on another thread.
    fn watch<F: Future + Send>(
        &self,
        turn: Self::Turn,
        call: F,
        runs_elsewhere: bool,
    ) -> impl Future<Output = F::Output> + Send
    where
        F::Output: Send;
}

/// What becomes of a record.
pub(crate) enum Admission<T> {
    Attempt(T),
    /// It becomes a dead letter.
    GivenUp(Reason),
    /// The shard has stopped while this record waited: it is released without an attempt.
    Stopped,
}
