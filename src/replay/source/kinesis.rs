//! Reads dead letters from a stream.

use std::collections::VecDeque;
use std::fmt;
use std::time::SystemTime;

use async_trait::async_trait;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::ProvideErrorMetadata;
use aws_sdk_kinesis::types::ShardIteratorType;
use bytes::Bytes;

use super::{DeadLetterSource, Handle, Message, SourceError};
use crate::aws::shard_list;
use crate::aws::shard_pages::{Page, ShardPages};
use crate::aws::{self, FailedCall, Located};
use crate::dead_letter::Storage;
use crate::failure::BoxError;
use crate::record::StreamId;

/// Reads what a [`dead_letter::Kinesis`](crate::dead_letter::Kinesis) has written, from the oldest record
/// that the stream holds, or from a [time](Kinesis::since), up to the newest.
///
/// Reads one shard after the other, and children after their parents, so that the dead letters of a key are
/// in order.
///
/// Permissions: `kinesis:ListShards`, `kinesis:GetShardIterator` and `kinesis:GetRecords` on the stream.
pub struct Kinesis {
    client: Located<Client>,
    stream: StreamId,
    since: Option<SystemTime>,
    /// The shards that are not read yet. `None` before the first read.
    shards: Option<VecDeque<String>>,
    open: Option<Open>,
}

/// The shard that is being read.
type Open = ShardPages;

impl Kinesis {
    /// Creates a source for the dead letters in this stream, by its name or ARN. The client's region must be
    /// that of the ARN. If the stream is neither a name nor an ARN, the first read fails.
    pub fn new(client: Client, stream: impl Into<StreamId>) -> Self {
        Kinesis {
            client: aws::kinesis::with_timeout(&client, aws::ATTEMPT_TIMEOUT),
            stream: stream.into(),
            since: None,
            shards: None,
            open: None,
        }
    }

    /// Starts at the dead letters that were written at this time or later. Default: at the oldest.
    #[must_use]
    pub fn since(mut self, time: SystemTime) -> Self {
        self.since = Some(time);
        self
    }

    async fn page(&mut self) -> Result<Vec<Message>, BoxError> {
        if self.shards.is_none() {
            self.stream.check("source::Kinesis::new")?;
            let shards = shard_list::list_shards(&self.client, &self.stream).await?;
            self.shards = Some(shards.into_iter().map(|shard| shard.shard_id).collect());
        }
        loop {
            let Some(open) = &mut self.open else {
                let Some(shard) = self.shards.as_ref().and_then(VecDeque::front).cloned() else {
                    return Ok(Vec::new());
                };
                self.open = self.iterator(&shard).await?;
                // Only now: after an error the shard must still be read.
                self.shards.as_mut().and_then(VecDeque::pop_front);
                continue;
            };
            let page = match open.next().await {
                Ok(Some(page)) => page,
                Ok(None) => {
                    self.open = None;
                    continue;
                }
                // The iterator expired before a record was read.
                Err(error) if error.code() == Some("ExpiredIteratorException") => {
                    let shard = open.shard().to_owned();
                    self.open = self.iterator(&shard).await?;
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

    /// Returns the messages of a page.
    fn take(&mut self, page: Page) -> Vec<Message> {
        let Some(open) = &self.open else {
            return Vec::new();
        };
        let place = format!("{}/{}", self.stream.name(), open.shard());
        page.records
            .into_iter()
            .map(|record| {
                let place = format!("{place}/{}", record.sequence_number);
                let data: Bytes = record.data.into_inner().into();
                Message::new(place, data, Handle(String::new()))
            })
            .collect()
    }

    /// Returns the pages of a shard; `None` if the stream no longer has the shard.
    async fn iterator(&self, shard: &str) -> Result<Option<Open>, BoxError> {
        let (name, arn) = self.stream.name_or_arn();
        let call = self.client.get_shard_iterator();
        let call = call.set_stream_name(name).set_stream_arn(arn).shard_id(shard);
        let call = match self.since {
            Some(since) => call
                .shard_iterator_type(ShardIteratorType::AtTimestamp)
                .timestamp(since.into()),
            None => call.shard_iterator_type(ShardIteratorType::TrimHorizon),
        };
        let iterator = match call.send().await {
            Ok(answer) => answer
                .shard_iterator
                .ok_or("GetShardIterator answered without an iterator")?,
            Err(error) if error.code() == Some("ResourceNotFoundException") && !self.lists(shard).await? => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Some(ShardPages::from(
            &self.client,
            &self.stream,
            shard,
            Some(iterator),
        )))
    }

    /// Returns true if the stream still has a shard. The stream may have dropped the shard's last record
    /// since it was listed. If the stream itself is gone, that is an error.
    async fn lists(&self, shard: &str) -> Result<bool, BoxError> {
        let shards = shard_list::list_shards(&self.client, &self.stream).await?;
        Ok(shards.iter().any(|listed| listed.shard_id == shard))
    }
}

#[async_trait]
impl DeadLetterSource for Kinesis {
    async fn read(&mut self) -> Result<Vec<Message>, SourceError> {
        let begun = self.shards.is_some();
        let page = self.page().await;
        let place = || format!("stream {:?}", self.stream.to_string());
        page.map_err(|error| match FailedCall::code(&*error) {
            Some("ResourceNotFoundException") if !begun => SourceError::Missing { place: place() },
            _ => SourceError::unavailable(place(), error),
        })
    }

    fn name(&self) -> String {
        format!("kinesis:{}", self.stream)
    }

    fn storage(&self) -> Storage {
        Storage::Stream(self.stream.clone())
    }
}

impl fmt::Debug for Kinesis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kinesis")
            .field("stream", &self.stream.to_string())
            .field("since", &self.since)
            .finish_non_exhaustive()
    }
}
