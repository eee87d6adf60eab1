//! From what Lambda says of a batch to the letters of its records.

#[cfg(feature = "kinesis")]
pub(in crate::replay) mod on_failure;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::operation::get_shard_iterator::GetShardIteratorError;
use aws_sdk_kinesis::types::ShardIteratorType;
use tokio::time::{Instant, sleep_until};

use super::reader::{Found, Reader};
use super::rehydrate::on_failure::{InvalidOnFailure, OnFailure};
use super::report::Outcome;
use super::source::{Message, SourceError};
use crate::StreamId;
use crate::aws::shard_pages::{self, PAUSE, ShardPages};
use crate::aws::{self, Located};
use crate::dead_letter::{Attempts, DeadLetter, Reason};
use crate::failure::{BoxError, Failure, Scope};
use crate::kpl::{Deaggregator, Expanded};
use crate::record::{Record, SequenceNumber, ShardId, Source};

/// Makes dead letters of the messages that Lambda writes to an on-failure destination, which say only where a batch was:
/// its records are read from the stream again, from the first to the last. Those of an S3 destination have them, and need
/// no reading.
///
/// - A record that the stream has dropped is reported ([`Outcome::Gone`]), and its message stays.
/// - Lambda names a range. If there are more records in it than the batch had (others were filtered out, or succeeded), they
///   cannot be told apart: all become letters, and each is [suspect](DeadLetter::suspect).
/// - A record that the KPL has aggregated becomes a letter for each record inside.
/// - A message is untrusted input. Only [streams](Rehydrate::stream) that the caller has named are read. A message whose
///   batch would have more than 10,000 records (Lambda, quotas), 64 MiB, or 100,000 records inside aggregated ones is
///   reported as [damaged](Outcome::Damaged), whatever size the message states.
///
/// Permissions: `kinesis:GetShardIterator` and `kinesis:GetRecords` on the stream.
pub struct Rehydrate {
    client: Located<Client>,
    streams: Vec<StreamId>,
    application: Option<String>,
    next_call: Instant,
}

/// A batch has 6 MB at most (Lambda, quotas). A range with more than this is none that can be worked on.
const MOST_BYTES: usize = 64 * 1024 * 1024;
/// The most records of a batch (Lambda, quotas).
const MOST_RECORDS: usize = 10_000;
/// The most records inside the aggregated records of a batch.
const MOST_OPENED: usize = 100_000;

impl Rehydrate {
    /// Reads the records with this client.
    pub fn new(client: Client) -> Self {
        Rehydrate {
            client: aws::kinesis::with_timeout(&client, aws::ATTEMPT_TIMEOUT),
            streams: Vec::new(),
            application: None,
            next_call: Instant::now(),
        }
    }

    /// Allows records to be read from this stream, by its name or ARN. Can be called for several streams. Default: none.
    ///
    /// By its ARN a stream is read only for messages that state the same ARN. The client's region must be that of the ARN.
    #[must_use]
    pub fn stream(mut self, stream: impl Into<StreamId>) -> Self {
        self.streams.push(stream.into());
        self
    }

    /// The application that the letters are of. Default: the function's name.
    #[must_use]
    pub fn application(mut self, name: impl Into<String>) -> Self {
        self.application = Some(name.into());
        self
    }

    async fn records(&mut self, batch: &OnFailure) -> Result<Read, Unread> {
        match batch.records() {
            Some(Ok(records)) => {
                return Ok(Read {
                    records,
                    gone: 0,
                    from_start: true,
                    suspect: false,
                });
            }
            Some(Err(error)) => return Err(Unread::Damaged(error.into())),
            None => {}
        }
        let place = Place::of(batch)
            .ok_or_else(|| Unread::Damaged("it does not say where its records are".into()))?;
        let stream = self.allowed(batch)?;
        let records = self.read(&stream, &place).await?;
        let number = |record: Option<&Record>| record.map(|record| record.sequence_number().clone());
        let from_start = number(records.first()).as_ref() == Some(place.start);
        let to_end = number(records.last()).as_ref() == Some(place.end);
        // A larger batch is none of Lambda's: what a message states bounds nothing.
        let size = batch.batch_size.map(|size| size.min(MOST_RECORDS as u64));
        let found = records.len() as u64;
        // Without the first and the last record of the range one is missing at least, and of those that are left some may
        // be others.
        let missing = size.map_or(0, |size| size.saturating_sub(found));
        let gone = missing.max(u64::from(!(from_start && to_end)));
        let suspect = match size {
            Some(size) => found > size - size.min(gone),
            None => found > 1,
        };
        Ok(Read {
            records,
            gone,
            from_start,
            suspect,
        })
    }

    /// Returns the stream of a batch, as the caller has named it.
    fn allowed(&self, batch: &OnFailure) -> Result<StreamId, Unread> {
        let arn = batch.stream_arn.as_deref().unwrap_or_default();
        // That of a consumer of the stream goes on behind the stream's.
        let is_same = |own: &str| {
            arn.strip_prefix(own)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let fits = |stream: &&StreamId| {
            batch.stream.as_deref() == Some(&**stream.name()) && stream.arn().is_none_or(is_same)
        };
        let stream = self.streams.iter().find(fits).cloned();
        stream.ok_or_else(|| {
            let error = format!(
                "its records are in {arn}, which this run may not read; allow the stream (Rehydrate::stream, --from-stream)"
            );
            Unread::Damaged(error.into())
        })
    }

    /// What the stream still holds from the first to the last.
    async fn read(&mut self, stream: &StreamId, place: &Place<'_>) -> Result<Vec<Record>, Unread> {
        let (mut records, mut bytes, mut passed): (Vec<Record>, _, _) = (Vec::new(), 0, false);
        let source = Arc::new(Source {
            stream: stream.name().clone(),
            shard: place.shard.clone(),
        });
        let iterator = self.iterator(stream, place).await?;
        let mut pages = ShardPages::from(&self.client, stream, place.shard.as_str(), iterator);
        while !passed {
            // Another batch of the same shard may be next: its turns are shared.
            self.turn().await;
            let page = pages.next().await;
            let Some(page) = page.map_err(|error| Unread::Unreachable(error.into()))? else {
                break;
            };
            for read in page.records {
                let Ok(record) = shard_pages::record(&source, read) else {
                    continue;
                };
                let number = record.sequence_number();
                passed |= number >= place.end;
                // Not every server of Kinesis' API begins at the record that it is asked for, nor has each page in order.
                if !(place.start..=place.end).contains(&number) {
                    continue;
                }
                bytes += record.payload().len();
                if bytes > MOST_BYTES || records.len() == MOST_RECORDS {
                    return Err(Unread::Damaged(
                        "between its first and its last record there are more than 64 MiB or 10,000 records"
                            .into(),
                    ));
                }
                records.push(record);
            }
        }
        records.sort_by(|a, b| a.sequence_number().cmp(b.sequence_number()));
        // A page that came twice, or a record in two pages, is one.
        records.dedup_by(|a, b| a.sequence_number() == b.sequence_number());
        Ok(records)
    }

    /// `None` if the shard's records are all gone.
    async fn iterator(&mut self, stream: &StreamId, place: &Place<'_>) -> Result<Option<String>, Unread> {
        self.turn().await;
        let from = |kind| {
            let (name, arn) = stream.name_or_arn();
            let call = self.client.get_shard_iterator();
            let call = call.set_stream_name(name).set_stream_arn(arn);
            call.shard_id(place.shard.as_str()).shard_iterator_type(kind)
        };
        let none = || Unread::Unreachable("GetShardIterator answered without an iterator".into());
        let start = place.start.as_str();
        let at = from(ShardIteratorType::AtSequenceNumber)
            .starting_sequence_number(start)
            .send();
        let error = match at.await {
            Ok(answer) => return answer.shard_iterator.ok_or_else(none).map(Some),
            Err(error) => error,
        };
        match error.code() {
            // Its first record is dropped: whether others are left is seen from the oldest.
            Some("InvalidArgumentException") => {}
            Some("ResourceNotFoundException") => return self.without_shard(stream, error).await,
            _ => return Err(Unread::Unreachable(error.into())),
        }
        match from(ShardIteratorType::TrimHorizon).send().await {
            Ok(answer) => answer.shard_iterator.ok_or_else(none).map(Some),
            Err(error) => Err(Unread::Unreachable(error.into())),
        }
    }

    /// Whether it is only the shard that is no longer there.
    async fn without_shard(
        &self,
        stream: &StreamId,
        error: SdkError<GetShardIteratorError>,
    ) -> Result<Option<String>, Unread> {
        let (name, arn) = stream.name_or_arn();
        let call = self.client.describe_stream_summary();
        match call.set_stream_name(name).set_stream_arn(arn).send().await {
            Ok(_) => Ok(None),
            Err(_) => Err(Unread::Unreachable(error.into())),
        }
    }

    async fn turn(&mut self) {
        sleep_until(self.next_call).await;
        self.next_call = Instant::now() + PAUSE;
    }

    fn letter(&self, batch: &OnFailure, record: &Record, suspect: bool) -> DeadLetter {
        let application = self
            .application
            .as_deref()
            .or(batch.function())
            .unwrap_or("lambda");
        let reason = match batch.condition.as_deref() {
            Some("RecordAgeExceeded") => Reason::TimeExhausted,
            _ => Reason::AttemptsExhausted,
        };
        let condition = batch.condition.clone().unwrap_or_else(|| "unknown".to_owned());
        let mut failure = Failure::transient(GaveUp { condition }).with_scope(Scope::Unknown);
        if let Some(error) = &batch.function_error {
            failure = failure.with_code(error.clone());
        }
        let attempts = Attempts {
            count: batch.invoke_count.unwrap_or(0),
            ..Attempts::default()
        };
        let function = batch.function_arn.as_deref().unwrap_or("AWS Lambda");
        let version = batch.version.as_deref();
        let letter = DeadLetter::new(application, record, reason, &failure);
        let letter = letter.with_attempts(attempts, std::any::type_name::<GaveUp>(), function, version);
        DeadLetter {
            dead_lettered_at: batch.timestamp.unwrap_or(letter.dead_lettered_at),
            suspect,
            ..letter
        }
    }
}

/// What was found of a batch.
struct Read {
    records: Vec<Record>,
    /// So many are no longer in the stream, at least.
    gone: u64,
    /// The first record of the batch is still there.
    from_start: bool,
    /// Some of them may be none of the batch.
    suspect: bool,
}

enum Unread {
    /// It is not what it should be: the rest goes on.
    Damaged(BoxError),
    /// It may be read later.
    Unreachable(BoxError),
}

struct Place<'a> {
    shard: &'a ShardId,
    start: &'a SequenceNumber,
    end: &'a SequenceNumber,
}

impl<'a> Place<'a> {
    fn of(batch: &'a OnFailure) -> Option<Self> {
        let start = batch.start.as_ref()?;
        batch.stream.as_ref()?;
        Some(Place {
            shard: batch.shard.as_ref()?,
            start,
            end: batch.end.as_ref().filter(|end| *end >= start).unwrap_or(start),
        })
    }
}

/// Why there is a letter: all that Lambda says of it.
#[derive(Debug, thiserror::Error)]
#[error("AWS Lambda gave the batch up: {condition}")]
struct GaveUp {
    condition: String,
}

#[async_trait]
impl Reader for Rehydrate {
    async fn read(&mut self, message: &Message) -> Result<Vec<Found>, SourceError> {
        let batch = match OnFailure::parse(&message.body) {
            Ok(batch) => batch,
            Err(InvalidOnFailure::Foreign) => return Ok(vec![Found::Not(Outcome::Foreign)]),
            Err(error) => return Ok(vec![Found::Not(Outcome::Damaged(error.into()))]),
        };
        let read = match self.records(&batch).await {
            Ok(read) => read,
            Err(Unread::Damaged(error)) => return Ok(vec![Found::Not(Outcome::Damaged(error))]),
            Err(Unread::Unreachable(error)) => {
                let stream = batch.stream.as_deref().unwrap_or("?");
                return Err(SourceError::unavailable(format!("stream {stream:?}"), error));
            }
        };
        let mut found = Vec::new();
        for number in 1..=read.gone {
            found.push(Found::Not(Outcome::Gone(Gone::of(&batch, number, &read).into())));
        }
        let mut opened = Vec::new();
        for record in read.records {
            if let Expanded::Dropped { record, .. } = Deaggregator::new().expand(record, &mut opened) {
                opened.push(record);
            }
            if opened.len() > MOST_OPENED {
                let error = "its records hold more than 100,000 aggregated ones".into();
                return Ok(vec![Found::Not(Outcome::Damaged(error))]);
            }
        }
        found.extend(opened.iter().map(|record| {
            let letter = self.letter(&batch, record, read.suspect);
            Found::Letter(Box::new(letter))
        }));
        if found.is_empty() {
            let error = "there are no records in it".into();
            found.push(Found::Not(Outcome::Damaged(error)));
        }
        Ok(found)
    }
}

/// A record that is lost, and what is known of it.
#[derive(Debug, thiserror::Error)]
#[error("{record} is no longer in stream {stream}, {shard}; {story}")]
struct Gone {
    record: String,
    stream: String,
    shard: String,
    story: String,
}

impl Gone {
    /// One of several, of which only the first of the batch is known by its number.
    fn of(batch: &OnFailure, number: u64, read: &Read) -> Self {
        let text =
            |number: &Option<SequenceNumber>| number.as_ref().map_or("?", SequenceNumber::as_str).to_owned();
        let (start, end) = (text(&batch.start), text(&batch.end));
        Gone {
            record: match number {
                1 if !read.from_start => format!("record {start}"),
                _ => format!(
                    "record {number} of {} behind {start}, at or before {end},",
                    read.gone
                ),
            },
            stream: batch.stream.clone().unwrap_or_default(),
            shard: batch.shard.as_ref().map(ToString::to_string).unwrap_or_default(),
            story: batch.story(),
        }
    }
}

impl fmt::Debug for Rehydrate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rehydrate")
            .field("streams", &self.streams)
            .field("application", &self.application)
            .finish_non_exhaustive()
    }
}
