//! The events of a dead-letter sink.

use std::error::Error;
use std::time::Duration;

/// An event of a dead-letter sink. New variants may be added.
#[derive(Debug)]
#[non_exhaustive]
pub enum DeadLetterEvent<'a> {
    /// A sink did not accept a dead letter, and the write is retried.
    #[non_exhaustive]
    WriteDelayed {
        /// The sink's name.
        sink: &'a str,
        /// The number of dead letters that wait.
        letters: usize,
        /// The number of consecutive failures of the sink.
        failures: u32,
        /// The error.
        error: &'a (dyn Error + Send + Sync + 'static),
        /// The time until the retry.
        delay: Duration,
    },
    /// The target of a sink may lose dead letters later.
    #[non_exhaustive]
    TargetWarning {
        /// The sink's name.
        sink: &'a str,
        /// The description of the problem.
        message: &'a str,
        /// The command that fixes the problem.
        remedy: &'a str,
    },
}
