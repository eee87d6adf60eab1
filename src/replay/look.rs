//! Letters read, and left where they are.

use std::ops::ControlFlow;

use super::source::{DeadLetterSource, Remaining, SourceError};
use crate::dead_letter::{DeadLetter, DecodeError};

/// Reads a source's messages until its end, or until `each` has seen enough; what it holds and has not given. Nothing is
/// removed; a queue counts that its messages were received.
pub async fn look(
    source: &mut dyn DeadLetterSource,
    mut each: impl FnMut(&str, Result<DeadLetter, DecodeError>) -> ControlFlow<()> + Send,
) -> Result<Remaining, SourceError> {
    let looked = async {
        loop {
            let page = source.read().await?;
            if page.is_empty() {
                return Ok(source.rest().await);
            }
            for message in page {
                if each(&message.place, DeadLetter::decode(&message.body)).is_break() {
                    return Ok(Remaining::default());
                }
            }
        }
    };
    let looked = looked.await;
    source.close().await?;
    looked
}
