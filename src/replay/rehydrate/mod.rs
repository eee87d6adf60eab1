//! Creates dead letters from what Lambda reports about a failed batch.

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

use self::on_failure::{OnFailure, ParseOnFailureError};
use super::reader::{Found, Reader};
use super::report::Outcome;
use super::source::{Message, SourceError};
use crate::aws::shard_pages::{self, PAUSE, ShardPages};
use crate::aws::{self, Located, stream_summary};
use crate::dead_letter::{Attempts, DeadLetter, Reason};
use crate::failure::{BoxError, Failure, Scope};
use crate::kpl::{Deaggregator, Expanded};
use crate::record::{Record, SequenceNumber, ShardId, Source, StreamId};

/// Creates dead letters from the messages that Lambda writes to an on-failure destination. Such a message
/// states only where a batch was, so the records are read from the stream again, from the first to the last.
/// Messages of an S3 destination contain the records, and need no reading.
///
/// - A record that the stream has dropped is reported ([`Outcome::Gone`]), and its message stays.
/// - Lambda names a range of sequence numbers. The range may contain more records than the batch had, because
///   others were filtered out or succeeded. They cannot be told apart: all become dead letters, and each is
///   [suspect](DeadLetter::suspect).
/// - Each record inside a KPL aggregate becomes a dead letter of its own.
/// - A message is untrusted input. Only [streams](Rehydrate::stream) that the caller has named are read. A
///   batch is limited to 10,000 records (Lambda quotas), 64 MiB, and 100,000 records inside aggregates. A
///   message beyond a limit is reported as [damaged](Outcome::Damaged), whatever size it states.
///
/// Permissions: `kinesis:GetShardIterator`, `kinesis:GetRecords` and, for a shard that is gone,
/// `kinesis:DescribeStreamSummary` on the stream.
pub struct Rehydrate {
    client: Located<Client>,
    streams: Vec<StreamId>,
    application: Option<String>,
    next_call: Instant,
}

/// The maximum size of the records in a range. A batch has at most 6 MB (Lambda quotas), so a range with more
/// than this limit is not processed.
const MOST_BYTES: usize = 64 * 1024 * 1024;
/// The maximum number of records of a batch (Lambda quotas).
const MOST_RECORDS: usize = 10_000;
/// The maximum number of records inside the aggregates of a batch.
const MOST_OPENED: usize = 100_000;

impl Rehydrate {
    /// Creates a reader that reads the records with this client.
    pub fn new(client: Client) -> Self {
        Rehydrate {
            client: aws::kinesis::with_timeout(&client, aws::ATTEMPT_TIMEOUT),
            streams: Vec::new(),
            application: None,
            next_call: Instant::now(),
        }
    }

    /// Allows records to be read from this stream, by its name or ARN. Can be called for several streams.
    /// Default: none.
    ///
    /// A stream that is named by its ARN is read only for messages that state the same ARN. The client's
    /// region must be that of the ARN. If a stream is neither a name nor an ARN, the first read fails.
    #[must_use]
    pub fn stream(mut self, stream: impl Into<StreamId>) -> Self {
        self.streams.push(stream.into());
        self
    }

    /// Sets the application that the dead letters belong to. Default: the function's name.
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
            .ok_or_else(|| Unread::Damaged("the message does not say where its records are".into()))?;
        let stream = self.allowed(batch)?;
        let records = self.read(&stream, &place).await?;
        let number = |record: Option<&Record>| record.map(|record| record.sequence_number().clone());
        let from_start = number(records.first()).as_ref() == Some(place.start);
        let to_end = number(records.last()).as_ref() == Some(place.end);
        // Lambda has no larger batches. The size in the message is untrusted, and must not raise the limit.
        let size = batch.batch_size.map(|size| size.min(MOST_RECORDS as u64));
        let found = records.len() as u64;
        // If the first or the last record of the range is missing, at least one record is gone. Then some of
        // the records that are left may not belong to the batch.
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

    /// Returns the stream of a batch as the caller has named it, or an error if the caller has not named it.
    fn allowed(&self, batch: &OnFailure) -> Result<StreamId, Unread> {
        let arn = batch.stream_arn.as_deref().unwrap_or_default();
        // The ARN of a stream's consumer is the stream's ARN followed by a slash and more.
        let is_same = |own: &str| {
            arn.strip_prefix(own)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let fits = |stream: &&StreamId| {
            batch.stream.as_deref() == Some(stream.name()) && stream.arn().is_none_or(is_same)
        };
        let stream = self.streams.iter().find(fits).cloned();
        stream.ok_or_else(|| {
            let error = format!(
                "cannot read records from {arn}: the stream is not allowed; use Rehydrate::stream or --from-stream"
            );
            Unread::Damaged(error.into())
        })
    }

    /// Returns the records that the stream still has, from the first to the last of the batch.
    async fn read(&mut self, stream: &StreamId, place: &Place<'_>) -> Result<Vec<Record>, Unread> {
        let (mut records, mut bytes, mut passed): (Vec<Record>, _, _) = (Vec::new(), 0, false);
        let source = Arc::new(Source {
            stream: stream.shared_name(),
            shard: place.shard.clone(),
        });
        let iterator = self.iterator(stream, place).await?;
        let mut pages = ShardPages::from(&self.client, stream, place.shard.as_str(), iterator);
        while !passed {
            // The next batch may be of the same shard, so that all calls share one pace.
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
                // Some servers of the Kinesis API do not start at the requested record, or return a page out
                // of order.
                if !(place.start..=place.end).contains(&number) {
                    continue;
                }
                bytes += record.payload().len();
                if bytes > MOST_BYTES || records.len() == MOST_RECORDS {
                    return Err(Unread::Damaged(
                        "the range of the batch has more than 64 MiB, or more than the maximum of 10,000 records"
                            .into(),
                    ));
                }
                records.push(record);
            }
        }
        records.sort_by(|a, b| a.sequence_number().cmp(b.sequence_number()));
        // A page that is returned twice, or a record in two pages, counts once.
        records.dedup_by(|a, b| a.sequence_number() == b.sequence_number());
        Ok(records)
    }

    /// Returns an iterator at the first record of the batch; `None` if the stream no longer has the shard.
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
            // The first record was dropped: read from the oldest record to see whether later ones are left.
            Some("InvalidArgumentException") => {}
            Some("ResourceNotFoundException") => return self.without_shard(stream, error).await,
            _ => return Err(Unread::Unreachable(error.into())),
        }
        match from(ShardIteratorType::TrimHorizon).send().await {
            Ok(answer) => answer.shard_iterator.ok_or_else(none).map(Some),
            Err(error) => Err(Unread::Unreachable(error.into())),
        }
    }

    /// Returns `None` if the stream exists and only the shard is gone; otherwise returns the error.
    async fn without_shard(
        &self,
        stream: &StreamId,
        error: SdkError<GetShardIteratorError>,
    ) -> Result<Option<String>, Unread> {
        let (name, arn) = stream.name_or_arn();
        let call = self.client.describe_stream_summary();
        let answer = call.set_stream_name(name).set_stream_arn(arn).send().await;
        match answer.is_ok_and(|answer| stream_summary(answer).is_ok()) {
            true => Ok(None),
            false => Err(Unread::Unreachable(error.into())),
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

/// The records of a batch that were found.
struct Read {
    records: Vec<Record>,
    /// The minimum number of records that are no longer in the stream.
    gone: u64,
    /// True if the first record of the batch was found.
    from_start: bool,
    /// True if some of the records may not belong to the batch.
    suspect: bool,
}

enum Unread {
    /// The message is invalid or not allowed. The run continues with the others.
    Damaged(BoxError),
    /// The records cannot be read now, but may be readable later.
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

/// The error of a rehydrated dead letter: all that Lambda reports about the failure.
#[derive(Debug, thiserror::Error)]
#[error("AWS Lambda gave up the batch: {condition}")]
struct GaveUp {
    condition: String,
}

#[async_trait]
impl Reader for Rehydrate {
    async fn read(&mut self, message: &Message) -> Result<Vec<Found>, SourceError> {
        for stream in &self.streams {
            let place = || format!("stream {:?}", stream.to_string());
            let checked = stream.check("Rehydrate::stream");
            checked.map_err(|error| SourceError::unavailable(place(), error))?;
        }
        let batch = match OnFailure::parse(&message.body) {
            Ok(batch) => batch,
            Err(ParseOnFailureError::Foreign) => return Ok(vec![Found::Not(Outcome::Foreign)]),
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
                let error = "the batch has more than 100,000 records inside aggregates".into();
                return Ok(vec![Found::Not(Outcome::Damaged(error))]);
            }
        }
        found.extend(opened.iter().map(|record| {
            let letter = self.letter(&batch, record, read.suspect);
            Found::Letter(Box::new(letter))
        }));
        if found.is_empty() {
            let error = "the batch has no records".into();
            found.push(Found::Not(Outcome::Damaged(error)));
        }
        Ok(found)
    }
}

/// A record that is lost, and what is known about it.
#[derive(Debug, thiserror::Error)]
#[error("{record} is no longer in stream {stream}, {shard}; {story}")]
struct Gone {
    record: String,
    stream: String,
    shard: String,
    story: String,
}

impl Gone {
    /// Describes one of several lost records. Only the first record of a batch has a known sequence number.
    fn of(batch: &OnFailure, number: u64, read: &Read) -> Self {
        let text =
            |number: &Option<SequenceNumber>| number.as_ref().map_or("?", SequenceNumber::as_str).to_owned();
        let (start, end) = (text(&batch.start), text(&batch.end));
        Gone {
            record: match number {
                1 if !read.from_start => format!("record {start}"),
                _ => format!(
                    "record {number} of {} after {start}, at or before {end},",
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
