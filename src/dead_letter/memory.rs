//! A sink for tests.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::{DeadLetter, DeadLetterSink, Receipt, SinkError};

/// Keeps dead letters in memory, where they are lost with the process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    letters: Arc<Mutex<Vec<DeadLetter>>>,
}

impl Memory {
    /// Creates an empty sink.
    pub fn new() -> Self {
        Memory::default()
    }

    /// Returns the dead letters that were written so far, in order.
    pub fn letters(&self) -> Vec<DeadLetter> {
        self.letters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[async_trait]
impl DeadLetterSink for Memory {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        let mut kept = self.letters.lock().unwrap_or_else(PoisonError::into_inner);
        letters
            .iter()
            .map(|letter| {
                kept.push(letter.clone());
                Ok(Receipt::new(format!("memory:{}", kept.len() - 1)))
            })
            .collect()
    }

    fn name(&self) -> String {
        "memory".to_owned()
    }
}
