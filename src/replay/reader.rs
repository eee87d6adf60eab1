//! Extracts the dead letters from a message.

use std::fmt;

use async_trait::async_trait;

use super::report::Outcome;
use super::source::{Message, SourceError};
use crate::dead_letter::{DeadLetter, DecodeError};

/// The content of a message.
pub(super) enum Found {
    Letter(Box<DeadLetter>),
    /// Content that cannot be replayed, with its outcome.
    Not(Outcome),
}

#[async_trait]
pub(super) trait Reader: Send + Sync + fmt::Debug {
    /// Returns the content of a message: at least one item.
    async fn read(&mut self, message: &Message) -> Result<Vec<Found>, SourceError>;
}

/// Reads each message as one dead letter, in any of its forms.
#[derive(Debug)]
pub(super) struct Letters;

#[async_trait]
impl Reader for Letters {
    async fn read(&mut self, message: &Message) -> Result<Vec<Found>, SourceError> {
        Ok(vec![match DeadLetter::decode(&message.body) {
            Ok(letter) => Found::Letter(Box::new(letter)),
            Err(DecodeError::Foreign) => Found::Not(Outcome::Foreign),
            Err(error) => Found::Not(Outcome::Unreadable(error)),
        }])
    }
}
