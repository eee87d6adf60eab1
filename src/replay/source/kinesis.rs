//! Letters in a dead-letter stream.

use std::collections::VecDeque;
use std::fmt;
use std::time::SystemTime;

use async_trait::async_trait;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::ProvideErrorMetadata;
use aws_sdk_kinesis::types::ShardIteratorType;
use bytes::Bytes;

use super::{DeadLetterSource, Handle, Message, SourceError};
use crate::dead_letter::Storage;
use crate::failure::BoxError;
use crate::sdk;
use crate::shard_pages::{Page, ShardPages};

/// Reads what a [`dead_letter::Kinesis`](crate::dead_letter::Kinesis) has written, from the oldest record that the stream
/// holds, or from a [time](Kinesis::since) on, to the newest.
///
/// One shard after the other, a shard's children behind it, so that letters of a key are in their order.
///
/// Permissions: `kinesis:ListShards`, `kinesis:GetShardIterator` and `kinesis:GetRecords` on the stream.
pub struct Kinesis {
    client: Client,
    stream: String,
    since: Option<SystemTime>,
    /// What is still to be read; none before it is begun.
    shards: Option<VecDeque<String>>,
    open: Option<Open>,
}

struct Open {
    shard: String,
    pages: ShardPages,
    last: Option<String>,
}

impl Kinesis {
    /// The letters in this stream (its name, not its ARN).
    pub fn new(client: Client, stream: impl Into<String>) -> Self {
        Kinesis {
            client: sdk::kinesis::with_timeout(&client, sdk::ATTEMPT_TIMEOUT),
            stream: stream.into(),
            since: None,
            shards: None,
            open: None,
        }
    }

    /// From letters on that were written at this time or later. Default: from the oldest.
    #[must_use]
    pub fn since(mut self, time: SystemTime) -> Self {
        self.since = Some(time);
        self
    }

    async fn page(&mut self) -> Result<Vec<Message>, BoxError> {
        if self.shards.is_none() {
            self.shards = Some(self.list_shards().await?);
        }
        loop {
            let Some(open) = &mut self.open else {
                let Some(shard) = self.shards.as_mut().and_then(VecDeque::pop_front) else {
                    return Ok(Vec::new());
                };
                self.open = self.iterator(&shard, None).await?;
                continue;
            };
            let page = match open.pages.next().await {
                Ok(Some(page)) => page,
                Ok(None) => {
                    self.open = None;
                    continue;
                }
                Err(error) if error.code() == Some("ExpiredIteratorException") => {
                    let (shard, last) = (open.shard.clone(), open.last.clone());
                    self.open = self.iterator(&shard, last.as_deref()).await?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let messages = self.take(page);
            if !messages.is_empty() {
                return Ok(messages);
            }
        }
    }

    /// What a page holds.
    fn take(&mut self, page: Page) -> Vec<Message> {
        let Some(open) = &mut self.open else {
            return Vec::new();
        };
        if let Some(last) = page.records.last() {
            open.last = Some(last.sequence_number.clone());
        }
        let place = format!("{}/{}", self.stream, open.shard);
        page.records
            .into_iter()
            .map(|record| {
                let place = format!("{place}/{}", record.sequence_number);
                let data: Bytes = record.data.into_inner().into();
                Message::new(place, data, Handle(String::new()))
            })
            .collect()
    }

    /// In an order in which each comes after those that it came of: a child's number is higher than its parents'.
    async fn list_shards(&self) -> Result<VecDeque<String>, BoxError> {
        let mut shards = Vec::new();
        let mut next = None;
        loop {
            let call = self.client.list_shards();
            let call = match next {
                None => call.stream_name(&self.stream),
                token => call.set_next_token(token),
            };
            let page = call.send().await?;
            shards.extend(
                page.shards
                    .unwrap_or_default()
                    .into_iter()
                    .map(|shard| shard.shard_id),
            );
            next = page.next_token;
            if next.is_none() {
                shards.sort();
                return Ok(shards.into());
            }
        }
    }

    /// `None` for a shard whose records are all gone.
    async fn iterator(&self, shard: &str, after: Option<&str>) -> Result<Option<Open>, BoxError> {
        let call = self
            .client
            .get_shard_iterator()
            .stream_name(&self.stream)
            .shard_id(shard);
        let call = match (after, self.since) {
            (Some(after), _) => call
                .shard_iterator_type(ShardIteratorType::AfterSequenceNumber)
                .starting_sequence_number(after),
            (None, Some(since)) => call
                .shard_iterator_type(ShardIteratorType::AtTimestamp)
                .timestamp(since.into()),
            (None, None) => call.shard_iterator_type(ShardIteratorType::TrimHorizon),
        };
        let iterator = match call.send().await {
            Ok(answer) => answer.shard_iterator,
            // Its last record was dropped between the listing and now.
            Err(error) if error.code() == Some("ResourceNotFoundException") => None,
            Err(error) => return Err(error.into()),
        };
        Ok(iterator.map(|iterator| Open {
            shard: shard.to_owned(),
            pages: ShardPages::from(&self.client, Some(iterator)),
            last: after.map(str::to_owned),
        }))
    }
}

#[async_trait]
impl DeadLetterSource for Kinesis {
    async fn read(&mut self) -> Result<Vec<Message>, SourceError> {
        let begun = self.shards.is_some();
        let page = self.page().await;
        page.map_err(|error| match code(&error) {
            Some("ResourceNotFoundException") if !begun => SourceError::Missing {
                place: format!("stream {:?}", self.stream),
            },
            _ => SourceError::unavailable(format!("stream {:?}", self.stream), error),
        })
    }

    fn name(&self) -> String {
        format!("kinesis:{}", self.stream)
    }

    fn storage(&self) -> Storage {
        Storage::Stream {
            name: self.stream.clone(),
            arn: None,
        }
    }
}

fn code(error: &BoxError) -> Option<&str> {
    use aws_sdk_kinesis::error::SdkError;
    use aws_sdk_kinesis::operation::list_shards::ListShardsError;
    error.downcast_ref::<SdkError<ListShardsError>>()?.code()
}

impl fmt::Debug for Kinesis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kinesis")
            .field("stream", &self.stream)
            .field("since", &self.since)
            .finish_non_exhaustive()
    }
}
