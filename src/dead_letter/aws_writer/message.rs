//! Dead letters as messages: SQS and SNS take only text, and keep order only within a message group.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use rand::RngExt as _;

use super::{Answers, CallError, Entry, EntryError, Request, Schedule, SharedError, has_code};
use crate::dead_letter::{DeadLetter, Receipt, SourceStream};
use crate::digest::Digest;

/// The record limit that every stream has at least, in bytes. It is the limit of a new stream.
const RECORD_LIMIT: u64 = 1024 * 1024;

/// Returns the size, in bytes, that the message of a dead letter of this stream may have.
pub(in crate::dead_letter) fn largest_message(source: &SourceStream) -> u64 {
    let record = source.max_record_bytes.unwrap_or(RECORD_LIMIT);
    // Base64 makes the payload larger by a third.
    record.div_ceil(3) * 4 + DeadLetter::MAX_ENVELOPE_BYTES as u64
}

/// Makes the deduplication ids of a sink.
///
/// SQS confirms and drops a message whose deduplication id it accepted within the last 5 minutes. It does so
/// even if the first message was received and deleted since. A dead letter that returns to a queue would be
/// dropped this way. So each write of a dead letter has an id of its own. The retries of one write share it:
/// they send one message.
#[derive(Debug)]
pub(in crate::dead_letter) struct Deduplication {
    /// A random number that differs between sinks. It does not come from the seed: a process that restarts
    /// with the same seed would repeat its ids.
    sink: u64,
    next: AtomicU64,
}

impl Deduplication {
    pub(in crate::dead_letter) fn new() -> Self {
        Deduplication {
            sink: rand::rng().random(),
            next: AtomicU64::new(0),
        }
    }

    /// Makes the entry of one write of a dead letter.
    pub(in crate::dead_letter) fn entry(&self, letter: &DeadLetter) -> Entry {
        let data = letter.to_json_line();
        let (id, sink, write) = (letter.id, self.sink, self.next.fetch_add(1, Ordering::Relaxed));
        Entry {
            key: group(letter),
            bytes: data.len() as u64,
            data: data.into(),
            // At most 98 characters; SQS and SNS take up to 128.
            deduplication_id: format!("{id}-{sink:016x}-{write:x}"),
            place: String::new(),
        }
    }
}

/// Returns the message group: the record's own partition key if the service takes it as a group, else the
/// key's digest. A record without a key uses the dead letter's id. A group has 1 to 128 letters, digits and
/// punctuation characters (SendMessage, SQS API reference; Publish, SNS API reference).
fn group(letter: &DeadLetter) -> String {
    match letter.partition_key.as_deref() {
        None => letter.id.to_string(),
        Some(key) if (1..=128).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) => {
            key.to_owned()
        }
        // All dead letters of the key share the digest, so that they stay in order.
        Some(key) => Digest::of(key).to_string(),
    }
}

/// A message of a batch, as SQS and SNS have it.
pub(in crate::dead_letter) struct Message {
    pub(in crate::dead_letter) id: String,
    pub(in crate::dead_letter) body: String,
    /// The message group, for a FIFO queue or topic.
    pub(in crate::dead_letter) group: Option<String>,
    /// The deduplication id, for a FIFO queue or topic.
    pub(in crate::dead_letter) deduplication_id: Option<String>,
}

/// Returns the messages of a request. The id of a message is its place in the request.
pub(in crate::dead_letter) fn messages(
    schedule: &Schedule,
    request: &Request,
    is_fifo: bool,
) -> impl Iterator<Item = Message> {
    schedule
        .entries(request)
        .enumerate()
        .map(move |(place, entry)| Message {
            id: place.to_string(),
            body: String::from_utf8_lossy(&entry.data).into_owned(),
            group: is_fifo.then(|| entry.key.clone()),
            deduplication_id: is_fifo.then(|| entry.deduplication_id.clone()),
        })
}

/// The answers to a batch, by the ids of its messages. The service returns them in any order.
pub(in crate::dead_letter) struct BatchAnswers<'a> {
    target: &'a str,
    by_id: HashMap<String, Result<Receipt, SharedError>>,
}

impl<'a> BatchAnswers<'a> {
    /// Creates the answers of the queue or topic with this name.
    pub(in crate::dead_letter) fn new(target: &'a str) -> Self {
        BatchAnswers {
            target,
            by_id: HashMap::new(),
        }
    }

    pub(in crate::dead_letter) fn confirm(&mut self, id: String, message_id: &str) {
        let receipt = Receipt::new(format!("{}/{message_id}", self.target));
        self.by_id.insert(id, Ok(receipt));
    }

    pub(in crate::dead_letter) fn fail(&mut self, id: String, code: String, message: Option<String>) {
        let message = message.unwrap_or_default();
        let error = EntryError::Failed { code, message };
        self.by_id.insert(id, Err(Arc::new(error)));
    }

    /// Returns the answers to `sent` messages, in the order of the messages.
    pub(in crate::dead_letter) fn in_order(mut self, sent: usize) -> Answers {
        let mut answer = |place: usize| self.by_id.remove(&place.to_string());
        (0..sent)
            .map(|place| answer(place).unwrap_or_else(|| Err(Arc::new(EntryError::Unconfirmed))))
            .collect()
    }
}

/// Creates the error of a batch call. With an error code of `content_codes`, the service refused the batch
/// for its content.
pub(in crate::dead_letter) fn call_error<E, R>(
    operation: &'static str,
    content_codes: &[&str],
    error: SdkError<E, R>,
) -> CallError
where
    E: Error + ProvideErrorMetadata + Send + Sync + 'static,
    R: fmt::Debug + Send + Sync + 'static,
{
    if !has_code(&error, content_codes) {
        return CallError::failed(operation, error);
    }
    CallError::Refused {
        operation,
        stated_limit: None,
        source: error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Limits;
    use super::*;

    #[test]
    fn answers_follow_the_order_of_the_messages() {
        let mut answers = BatchAnswers::new("orders-dlq");
        answers.fail("2".into(), "InternalError".into(), None);
        answers.confirm("0".into(), "m0");
        answers.confirm("7".into(), "m7");
        let answers = answers.in_order(3);
        assert_eq!(answers.len(), 3);
        assert!(matches!(&answers[0], Ok(receipt) if receipt.location == "orders-dlq/m0"));
        let text = |place: usize| answers[place].as_ref().expect_err("not confirmed").to_string();
        assert!(text(1).contains("neither a place nor an error"), "{}", text(1));
        assert!(text(2).contains("InternalError"), "{}", text(2));
    }

    #[test]
    fn only_fifo_messages_have_group_and_deduplication_id() {
        let entry = Entry {
            key: "a".to_owned(),
            data: "body".into(),
            bytes: 4,
            deduplication_id: "once".to_owned(),
            place: String::new(),
        };
        let limits = Limits {
            entries: 10,
            bytes: 100,
        };
        let mut schedule = Schedule::new(vec![entry], limits);
        let request = schedule.next_request().expect("one entry");
        let message = |is_fifo| {
            messages(&schedule, &request, is_fifo)
                .next()
                .expect("one message")
        };
        let (fifo, standard) = (message(true), message(false));
        assert_eq!((fifo.id.as_str(), fifo.body.as_str()), ("0", "body"));
        assert_eq!(fifo.group.as_deref(), Some("a"));
        assert_eq!(fifo.deduplication_id.as_deref(), Some("once"));
        assert_eq!((standard.group, standard.deduplication_id), (None, None));
    }
}
