//! Replays records into a stream.

use std::fmt;

use aws_sdk_kinesis::Client;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::StreamId;
use crate::dead_letter::{self, DeadLetter, DeadLetterSink as _, Payload};
use crate::kpl::Aggregator;
use crate::replay::target::{self, Job, Sent, Target};

/// A stream that receives the records of dead letters, each under its own partition key.
///
/// The payload is that of the original record. A record from inside an aggregate is put as a record of its
/// own.
///
/// Permissions: `kinesis:PutRecords` and `kinesis:DescribeStreamSummary` on the stream.
pub struct Stream {
    sink: dead_letter::Kinesis,
    stamped: bool,
}

impl Stream {
    /// Creates a target for this stream, by its name or ARN. The client's region must be that of the ARN.
    pub fn new(client: Client, stream: impl Into<StreamId>) -> Self {
        Stream {
            sink: dead_letter::Kinesis::new(client, stream).payload(Payload::Raw),
            stamped: false,
        }
    }

    /// Wraps each record in a KPL aggregate, whose tags say where the record comes from and how often it was
    /// replayed. The wrapping adds up to 250 bytes.
    ///
    /// A consumer of redrive that is built with `redrive_stamps` reads the tags
    /// ([`Record::redriven`](crate::Record::redriven)). KCL opens the aggregate. A consumer that opens no
    /// aggregates must not receive any.
    #[must_use]
    pub fn stamped(mut self) -> Self {
        self.stamped = true;
        self
    }

    pub(in crate::replay) fn sink(&self) -> &dead_letter::Kinesis {
        &self.sink
    }

    /// Returns what to put into the stream, as a dead letter that the sink writes without its envelope.
    fn record(&self, job: &Job) -> DeadLetter {
        let letter = job.letter.clone();
        let payload = match &letter.partition_key {
            // Only a record from inside an aggregate can have such a key, so that it is wrapped again.
            Some(key) if self.stamped || !(1..=256).contains(&key.chars().count()) => self.wrapped(key, job),
            None if self.stamped => self.wrapped(&letter.id.to_string(), job),
            _ => letter.payload,
        };
        DeadLetter { payload, ..letter }
    }

    fn wrapped(&self, key: &str, job: &Job) -> Bytes {
        let payload = job.letter.payload.clone();
        let mut aggregator = Aggregator::new(usize::MAX);
        let added = match self.stamped {
            true => aggregator.add_redriven(key, None, payload, &job.redriven),
            false => aggregator.add(key, None, payload),
        };
        let aggregate = added.ok().and_then(|()| aggregator.finish());
        // An aggregator without a size limit accepts every record.
        aggregate.map_or_else(|| job.letter.payload.clone(), |aggregate| aggregate.data)
    }
}

impl Target for Stream {
    fn name(&self) -> String {
        self.sink.name()
    }

    fn is_known_by_content(&self) -> bool {
        !self.stamped
    }

    async fn send(&self, jobs: &[Job], _: &CancellationToken) -> Sent {
        let records = jobs.iter().map(|job| self.record(job)).collect();
        target::write(&self.sink, jobs, records).await
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("stream", &self.sink.name())
            .field("stamped", &self.stamped)
            .finish_non_exhaustive()
    }
}
