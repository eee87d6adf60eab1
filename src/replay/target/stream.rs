//! Replays records into a stream.

use std::fmt;

use aws_sdk_kinesis::Client;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::dead_letter::{StreamRecord, StreamWriter, partition_key};
use crate::kpl::Aggregator;
use crate::record::StreamId;
use crate::replay::target::{self, Job, Sent, Target};

/// A stream that receives the records of dead letters, each under its own partition key.
///
/// The payload is that of the original record. A record from inside an aggregate is put as a record of its
/// own.
///
/// Permissions: `kinesis:PutRecords` and `kinesis:DescribeStreamSummary` on the stream.
pub struct Stream {
    writer: StreamWriter,
    stamped: bool,
}

impl Stream {
    /// Creates a target for this stream, by its name or ARN. The client's region must be that of the ARN. If
    /// the stream is neither, the replay fails before it reads a dead letter.
    pub fn new(client: Client, stream: impl Into<StreamId>) -> Self {
        Stream {
            writer: StreamWriter::new(&client, stream.into(), "replay::Stream::new"),
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

    pub(in crate::replay) fn writer(&self) -> &StreamWriter {
        &self.writer
    }
}

/// The record of a dead letter, as the stream receives it.
struct Replayed<'a> {
    job: &'a Job,
    stamped: bool,
}

impl StreamRecord for Replayed<'_> {
    fn key(&self) -> String {
        partition_key(&self.job.letter)
    }

    fn data(&self) -> Bytes {
        let letter = &self.job.letter;
        match &letter.partition_key {
            // Only a record from inside an aggregate can have such a key, so that it is wrapped again.
            Some(key) if self.stamped || !(1..=256).contains(&key.chars().count()) => self.wrapped(key),
            None if self.stamped => self.wrapped(&letter.id.to_string()),
            _ => letter.payload.clone(),
        }
    }
}

impl Replayed<'_> {
    fn wrapped(&self, key: &str) -> Bytes {
        let Job { letter, redriven, .. } = self.job;
        let payload = letter.payload.clone();
        let mut aggregator = Aggregator::new(usize::MAX);
        let added = match self.stamped {
            true => aggregator.add_redriven(key, None, payload, redriven),
            false => aggregator.add(key, None, payload),
        };
        let aggregate = added.ok().and_then(|()| aggregator.finish());
        // An aggregator without a size limit accepts every record.
        aggregate.map_or_else(|| letter.payload.clone(), |aggregate| aggregate.data)
    }
}

impl Target for Stream {
    fn name(&self) -> String {
        self.writer.name()
    }

    fn is_known_by_content(&self) -> bool {
        !self.stamped
    }

    async fn send(&self, jobs: &[Job], _: &CancellationToken) -> Sent {
        let stamped = self.stamped;
        target::write(jobs, |jobs| {
            let records: Vec<Replayed> = jobs.into_iter().map(|job| Replayed { job, stamped }).collect();
            // The future of a call is large. Without a box, the futures of the run would contain it several
            // times, and overflow the stack in a debug build.
            Box::pin(async move { self.writer.put(&records).await })
        })
        .await
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("stream", &self.writer.name())
            .field("stamped", &self.stamped)
            .finish_non_exhaustive()
    }
}
