//! The simulated dead-letter sink that is not a Kinesis stream.

use std::collections::HashSet;
use std::fmt;
use std::future::pending;
use std::panic::resume_unwind;
use std::time::Duration;

use async_trait::async_trait;
use redrive::dead_letter::{DeadLetter, DeadLetterSink, Receipt, SinkError};
use tokio::time::sleep;

use super::fault::Fault;
use super::world::World;

pub struct Sink(pub World);

impl Sink {
    fn write(&self, letter: &DeadLetter, behind: &mut HashSet<String>) -> Result<Receipt, SinkError> {
        let world = &self.0;
        let key = letter.partition_key.clone().unwrap_or_default();
        if behind.contains(&key) {
            return Err(SinkError::Behind);
        }
        if world.strikes(Fault::EntryFailed) {
            behind.insert(key);
            return Err(SinkError::unavailable("not this one"));
        }
        // The oracle gets the dead letter as a reader decodes it.
        match DeadLetter::from_json_line(&letter.to_json_line()) {
            Ok(letter) => world.letter_stored(&letter),
            Err(error) => world.violated(super::Promise::LetterWhole, error.to_string()),
        }
        Ok(Receipt::new("sink"))
    }
}

#[async_trait]
impl DeadLetterSink for Sink {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        let world = &self.0;
        let fail = |reason: &'static str| {
            letters
                .iter()
                .map(|_| Err(SinkError::unavailable(reason)))
                .collect()
        };
        world.contact("sink", letters.len(), 0).await;
        letters.iter().for_each(|letter| world.letter_sent(letter));
        if world.strikes(Fault::SinkPanic) {
            resume_unwind(Box::new("a broken sink"));
        }
        sleep(world.latency()).await;
        if world.strikes(Fault::SinkSlow) {
            sleep(Duration::from_secs(100)).await;
        }
        if world.is_down(Fault::SinkOutage) || world.strikes(Fault::ServerError) {
            return fail("down");
        }
        let mut behind = HashSet::new();
        let results = letters
            .iter()
            .map(|letter| self.write(letter, &mut behind))
            .collect();
        world.contact("sunk", 0, 0).await;
        if world.strikes(Fault::Silence) {
            return pending().await;
        }
        if world.strikes(Fault::ResponseLost) {
            return fail("connection reset");
        }
        results
    }

    fn name(&self) -> String {
        "simulated".to_owned()
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sink")
    }
}
