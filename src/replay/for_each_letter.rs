//! Reads dead letters and leaves them in their source.

use std::ops::ControlFlow;

use super::source::{DeadLetterSource, Remaining, SourceError};
use crate::dead_letter::{DeadLetter, DecodeError};

/// Reads the messages of a source until its end, or until `each` breaks. Returns the messages that the source
/// still holds (none after a break). Removes nothing, but a queue counts each message as received.
pub async fn for_each_letter(
    source: &mut dyn DeadLetterSource,
    mut each: impl FnMut(&str, Result<DeadLetter, DecodeError>) -> ControlFlow<()> + Send,
) -> Result<Remaining, SourceError> {
    let reading = async {
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
    let read = reading.await;
    source.close().await?;
    read
}
