//! Reads dead letters from a queue.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::ProvideErrorMetadata;
use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, MessageSystemAttributeName,
    QueueAttributeName,
};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use tokio::time::Instant;

use super::{DeadLetterSource, Handle, Message, PAGE_BYTES, Remaining, SourceError};
use crate::aws::{self, Located};
use crate::dead_letter::{DeadLetter, Storage};
use crate::failure::BoxError;

/// Reads what a [`dead_letter::Sqs`](crate::dead_letter::Sqs) has written. Also reads what a
/// [`dead_letter::Sns`](crate::dead_letter::Sns) has written to a topic that this queue is subscribed to,
/// with or without raw delivery.
///
/// - A FIFO queue returns the dead letters of a group in order, and no more of a group while some of its
///   messages are in flight. Dead letters behind others that stay (for example because the filter does not
///   match) are not reached.
/// - A standard queue keeps no order. The source collects up to 10,000 messages or 64 MiB and sorts them by
///   the positions of their records. Among the collected messages, the dead letters of a key are in order.
///   The source ends when the queue is empty, and not while dead letters are written as fast as it is read.
/// - A message that was read is hidden from other readers for a minute, which is renewed while the message is
///   in flight. A message that was not removed becomes visible again at the end. A queue with a redrive
///   policy (`maxReceiveCount`) counts these receives.
///
/// Permissions: `sqs:ReceiveMessage`, `sqs:DeleteMessage`, `sqs:ChangeMessageVisibility` and
/// `sqs:GetQueueAttributes`.
pub struct Sqs {
    client: Located<Client>,
    queue_url: String,
    /// The receipt handles of messages that were received and not removed, by message id.
    held: HashMap<String, String>,
    /// The messages of the last page that were deleted: a queue may deliver a message twice.
    deleted: HashSet<String>,
    kept_at: Instant,
}

/// The maximum number of messages of a ReceiveMessage call and of a batch call (SQS API reference).
const BATCH: usize = 10;
/// The maximum number of messages of a standard queue that are sorted at once.
const COLLECTED: usize = 10_000;
/// The maximum number of messages of a FIFO queue that are in flight at once.
const COLLECTED_FIFO: usize = 500;
/// The maximum number of concurrent calls.
const CALLS: usize = 8;
const HIDDEN: Duration = Duration::from_secs(60);
const WAIT: Duration = Duration::from_secs(1);
/// The number of empty responses in a row after which a queue counts as empty. A standard queue is spread
/// over servers, each of which may hold a few messages.
const EMPTY_ANSWERS: u32 = 3;

impl Sqs {
    /// Creates a source for the dead letters in the queue with this URL.
    pub fn new(client: Client, queue_url: impl Into<String>) -> Self {
        Sqs {
            client: aws::sqs::with_timeout(&client, aws::ATTEMPT_TIMEOUT),
            queue_url: queue_url.into(),
            held: HashMap::new(),
            deleted: HashSet::new(),
            kept_at: Instant::now(),
        }
    }

    fn is_fifo(&self) -> bool {
        self.queue_url.ends_with(".fifo")
    }

    /// Receives messages with this number of concurrent calls.
    async fn receive(&mut self, calls: usize) -> Result<Vec<Message>, SourceError> {
        let received = join_all((0..calls).map(|_| {
            self.client
                .receive_message()
                .queue_url(&self.queue_url)
                .max_number_of_messages(BATCH as i32)
                .visibility_timeout(HIDDEN.as_secs() as i32)
                .wait_time_seconds(WAIT.as_secs() as i32)
                .message_system_attribute_names(MessageSystemAttributeName::SequenceNumber)
                .send()
        }))
        .await;
        let mut messages = Vec::new();
        for received in received {
            let received = received.map_err(|error| match error.code() {
                Some(code) if code.ends_with("QueueDoesNotExist") || code.ends_with("NonExistentQueue") => {
                    SourceError::Missing {
                        place: format!("queue {}", self.queue_url),
                    }
                }
                _ => SourceError::unavailable(self.name(), error),
            })?;
            for message in received.messages.unwrap_or_default() {
                let (Some(id), Some(handle)) = (message.message_id, message.receipt_handle) else {
                    continue;
                };
                let place = format!("{}/{id}", self.name());
                // Only the newest receipt handle is valid.
                self.held.insert(id.clone(), handle);
                let body = unwrapped(message.body.unwrap_or_default());
                messages.push(Message::new(place, body, Handle(id)));
            }
        }
        Ok(messages)
    }

    async fn count(&self, of: QueueAttributeName) -> Option<u64> {
        let call = self.client.get_queue_attributes().queue_url(&self.queue_url);
        let answer = call.attribute_names(of.clone()).send().await.ok()?;
        answer.attributes?.get(&of)?.parse().ok()
    }

    async fn change_visibility(&self, ids: Vec<String>, seconds: i32) -> Result<(), SourceError> {
        let calls = ids.chunks(BATCH).map(|ids| {
            let entries: Result<Vec<_>, _> = ids
                .iter()
                .enumerate()
                .filter_map(|(place, id)| Some((place, self.held.get(id)?)))
                .map(|(place, handle)| {
                    ChangeMessageVisibilityBatchRequestEntry::builder()
                        .id(place.to_string())
                        .receipt_handle(handle)
                        .visibility_timeout(seconds)
                        .build()
                })
                .collect();
            async move {
                let call = self.client.change_message_visibility_batch();
                let call = call.queue_url(&self.queue_url).set_entries(Some(entries?));
                // Failed entries are ignored. A message that is already visible cannot be hidden longer;
                // reading it twice is harmless.
                call.send().await?;
                Ok::<(), BoxError>(())
            }
        });
        let calls: Vec<_> = calls.collect();
        let changed: Vec<_> = stream::iter(calls).buffered(CALLS).collect().await;
        let changed: Result<(), BoxError> = changed.into_iter().collect();
        changed.map_err(|error| SourceError::unavailable(self.name(), error))
    }

    /// Deletes at most [`BATCH`] messages.
    async fn delete(&self, ids: &[Handle]) -> Vec<Result<(), SourceError>> {
        // Only messages that SQS confirms count as deleted. A message that was released meanwhile is not
        // deleted.
        let unconfirmed = || SourceError::unavailable(self.name(), "the deletion was not confirmed");
        let result = |Handle(id): &Handle| match self.deleted.contains(id) {
            true => Ok(()),
            false => Err(unconfirmed()),
        };
        let mut results: Vec<Result<(), SourceError>> = ids.iter().map(result).collect();
        let mut asked = HashSet::new();
        let entries: Result<Vec<_>, _> = ids
            .iter()
            .enumerate()
            .filter(|&(_, Handle(id))| asked.insert(id))
            .filter_map(|(place, Handle(id))| Some((place, self.held.get(id)?)))
            .map(|(place, handle)| {
                DeleteMessageBatchRequestEntry::builder()
                    .id(place.to_string())
                    .receipt_handle(handle)
                    .build()
            })
            .collect();
        let deleted = match entries {
            Ok(entries) if entries.is_empty() => return results,
            Ok(entries) => {
                let call = self.client.delete_message_batch().queue_url(&self.queue_url);
                call.set_entries(Some(entries))
                    .send()
                    .await
                    .map_err(BoxError::from)
            }
            Err(error) => Err(error.into()),
        };
        match deleted {
            Ok(answer) => {
                let place = |id: String| id.parse::<usize>().ok();
                for deleted in answer.successful {
                    let deleted = place(deleted.id).and_then(|place| ids.get(place));
                    // The queue may have delivered a message twice.
                    for (result, _) in results.iter_mut().zip(ids).filter(|(_, id)| Some(*id) == deleted) {
                        *result = Ok(());
                    }
                }
                for failed in answer.failed {
                    if let Some(result) = place(failed.id).and_then(|place| results.get_mut(place)) {
                        *result = Err(SourceError::unavailable(self.name(), failed.code));
                    }
                }
                results
            }
            Err(error) => crate::external::failed_alike(ids.len(), error, |error| {
                SourceError::unavailable(self.name(), error)
            }),
        }
    }
}

/// Returns the message inside the envelope that SNS adds, unless the subscription uses raw delivery.
fn unwrapped(body: String) -> String {
    #[derive(serde::Deserialize)]
    struct Notification {
        #[serde(rename = "Type")]
        kind: String,
        #[serde(rename = "Message")]
        message: String,
    }
    match serde_json::from_str(&body) {
        Ok(Notification { kind, message }) if kind == "Notification" => message,
        _ => body,
    }
}

#[async_trait]
impl DeadLetterSource for Sqs {
    async fn read(&mut self) -> Result<Vec<Message>, SourceError> {
        self.deleted.clear();
        let most = if self.is_fifo() { COLLECTED_FIFO } else { COLLECTED };
        let (mut messages, mut bytes, mut empty) = (Vec::new(), 0, 0);
        while messages.len() < most && bytes < PAGE_BYTES && empty < EMPTY_ANSWERS {
            // Once few messages are left, a single call waits for them.
            let calls = if empty == 0 { CALLS } else { 1 };
            let received = self.receive(calls).await?;
            if self.kept_at.elapsed() > HIDDEN / 3 {
                self.keep().await?;
            }
            empty = if received.is_empty() { empty + 1 } else { 0 };
            bytes += received.iter().map(|message| message.body.len()).sum::<usize>();
            messages.extend(received);
            // A FIFO queue returns no more messages of these groups until these are removed.
            if self.is_fifo() && empty > 0 && !messages.is_empty() {
                break;
            }
        }
        if !self.is_fifo() {
            messages.sort_by_cached_key(|message| {
                let letter = DeadLetter::from_json_line(&message.body).ok()?;
                let numbers = (letter.sequence_number, letter.sub_sequence_number);
                Some((letter.stream, letter.shard, numbers, letter.redrive_count))
            });
        }
        Ok(messages)
    }

    async fn remove(&mut self, messages: &[Handle]) -> Vec<Result<(), SourceError>> {
        let calls: Vec<_> = messages.chunks(BATCH).map(|ids| self.delete(ids)).collect();
        let results: Vec<_> = stream::iter(calls).buffered(CALLS).collect().await;
        let results: Vec<Result<(), SourceError>> = results.into_iter().flatten().collect();
        for (Handle(id), result) in messages.iter().zip(&results) {
            if result.is_ok() {
                self.held.remove(id);
                self.deleted.insert(id.clone());
            }
        }
        results
    }

    fn removes(&self) -> bool {
        true
    }

    fn keeps_order(&self) -> bool {
        self.is_fifo()
    }

    fn keep_interval(&self) -> Option<Duration> {
        Some(HIDDEN / 3)
    }

    async fn keep(&mut self) -> Result<(), SourceError> {
        self.kept_at = Instant::now();
        let ids = self.held.keys().cloned().collect();
        self.change_visibility(ids, HIDDEN.as_secs() as i32).await
    }

    async fn rest(&mut self) -> Remaining {
        let hidden = self.count(QueueAttributeName::ApproximateNumberOfMessagesNotVisible);
        let hidden = hidden.await.unwrap_or(0).saturating_sub(self.held.len() as u64);
        // Also counted for a standard queue: empty responses do not prove that it is empty.
        let behind = self.count(QueueAttributeName::ApproximateNumberOfMessages).await;
        Remaining {
            behind: behind.unwrap_or(0),
            hidden,
        }
    }

    async fn close(&mut self) -> Result<(), SourceError> {
        let ids = self.held.keys().cloned().collect();
        let shown = self.change_visibility(ids, 0).await;
        self.held.clear();
        shown
    }

    async fn estimate(&mut self) -> Option<u64> {
        self.count(QueueAttributeName::ApproximateNumberOfMessages).await
    }

    fn name(&self) -> String {
        let queue = self.queue_url.rsplit('/').next().unwrap_or_default();
        format!("sqs:{queue}")
    }

    fn storage(&self) -> Storage {
        Storage::Queue(self.queue_url.clone())
    }
}

impl fmt::Debug for Sqs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqs")
            .field("queue", &self.name())
            .finish_non_exhaustive()
    }
}
