//! From a message to the letters in it.

use std::fmt;

use async_trait::async_trait;

use super::report::Outcome;
use super::source::{Message, SourceError};
use crate::dead_letter::{DeadLetter, DecodeError};

/// What was found in a message.
pub(super) enum Found {
    Letter(Box<DeadLetter>),
    /// Nothing that can be driven again.
    Not(Outcome),
}

#[async_trait]
pub(super) trait Reader: Send + Sync + fmt::Debug {
    /// At least one for each message.
    async fn read(&mut self, message: &Message) -> Result<Vec<Found>, SourceError>;
}

/// A message is a letter, in any of its forms.
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
