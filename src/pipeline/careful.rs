//! Whom to ask before a handler is called, where one call may be the process's last.

use crate::dead_letter::Reason;
use crate::record::Record;

/// Asked before each handler call.
pub(crate) trait Careful: Send + Sync {
    /// Ends with the attempt.
    type Turn: Send;

    fn take(&self, record: &Record) -> impl Future<Output = Taken<Self::Turn>> + Send;
}

/// What becomes of a record.
pub(crate) enum Taken<T> {
    Tries(T),
    /// It becomes a dead letter.
    GivenUp(Reason),
}
