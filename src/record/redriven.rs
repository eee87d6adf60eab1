//! What is known of a record that comes back from the dead.

use std::time::SystemTime;

use crate::record::DeadLetterId;

/// The record failed before, became a dead letter and was driven again ([`Record::redriven`](super::Record::redriven)).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Redriven {
    /// The [origin](crate::dead_letter::DeadLetter::origin) of its letters: the same however often it is driven again.
    pub origin: DeadLetterId,
    /// How often it was driven again, this time included: 1 or more.
    pub count: u32,
    /// When Kinesis received it the first time, if that is known.
    pub arrived_at: Option<SystemTime>,
}

impl Redriven {
    /// Driven again for the time with this number.
    pub fn new(origin: DeadLetterId, count: u32, arrived_at: Option<SystemTime>) -> Self {
        Redriven {
            origin,
            count,
            arrived_at,
        }
    }
}
