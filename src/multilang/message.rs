//! The messages between the daemon and its child process.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::failure::BoxError;
use crate::record::{Position, Record, Source};

/// A message from the daemon. (`MessageWriter` and its neighbouring classes in KCL's `multilang` package.)
#[derive(Debug, Deserialize)]
#[serde(tag = "action", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(super) enum Incoming {
    Initialize {
        shard_id: String,
        sequence_number: Option<String>,
        sub_sequence_number: Option<u64>,
    },
    ProcessRecords {
        records: Vec<IncomingRecord>,
    },
    /// The answer to a checkpoint.
    Checkpoint {
        error: Option<String>,
    },
    LeaseLost,
    ShardEnded,
    ShutdownRequested,
    /// The message of older KCL versions for a lost lease, the end of a shard or a requested shutdown.
    Shutdown {
        reason: Option<String>,
    },
}

impl Incoming {
    /// Returns the action that the status message must name.
    pub(super) fn action(&self) -> &'static str {
        match self {
            Incoming::Initialize { .. } => "initialize",
            Incoming::ProcessRecords { .. } => "processRecords",
            Incoming::Checkpoint { .. } => "checkpoint",
            Incoming::LeaseLost => "leaseLost",
            Incoming::ShardEnded => "shardEnded",
            Incoming::ShutdownRequested => "shutdownRequested",
            Incoming::Shutdown { .. } => "shutdown",
        }
    }

    /// Translates the shutdown message of older KCL versions into the current message. (`ShutdownReason` in
    /// KCL's `lifecycle` package; TERMINATE and ZOMBIE before version 2.)
    pub(super) fn meant(self) -> Self {
        let Incoming::Shutdown { reason } = &self else {
            return self;
        };
        match reason.as_deref() {
            Some("TERMINATE" | "SHARD_END") => Incoming::ShardEnded,
            Some("ZOMBIE" | "LEASE_LOST") => Incoming::LeaseLost,
            Some("REQUESTED") => Incoming::ShutdownRequested,
            _ => self,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IncomingRecord {
    data: String,
    partition_key: Option<String>,
    sequence_number: String,
    sub_sequence_number: Option<u64>,
    /// The arrival time in milliseconds since 1970.
    approximate_arrival_timestamp: Option<u64>,
}

impl std::fmt::Debug for IncomingRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IncomingRecord")
            .field("sequence_number", &self.sequence_number)
            .finish_non_exhaustive()
    }
}

impl IncomingRecord {
    pub(super) fn into_record(self, source: &Arc<Source>) -> Result<Record, BoxError> {
        let mut builder = Record::read_from(source.clone(), self.sequence_number.try_into()?)
            .sub_sequence_number(self.sub_sequence_number.unwrap_or_default())
            .payload(BASE64.decode(self.data)?);
        if let Some(key) = self.partition_key {
            builder = builder.partition_key(key);
        }
        let arrival = self.approximate_arrival_timestamp.map(Duration::from_millis);
        if let Some(arrival) = arrival.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since)) {
            builder = builder.arrival(arrival);
        }
        Ok(builder.build())
    }
}

/// Returns the position where KCL starts a shard: the record of a checkpoint, or the trim horizon if KCL
/// sends a name such as `LATEST` in place of a sequence number.
pub(super) fn beginning(sequence_number: Option<String>, sub_sequence_number: Option<u64>) -> Position {
    match sequence_number.map(TryInto::try_into) {
        Some(Ok(sequence_number)) => Position::Record {
            sequence_number,
            sub_sequence_number: sub_sequence_number.unwrap_or_default(),
        },
        _ => Position::TrimHorizon,
    }
}

/// A message to the daemon.
#[derive(Debug, Serialize)]
#[serde(tag = "action", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(super) enum Outgoing<'a> {
    /// The action with this name is complete.
    Status { response_for: &'a str },
    /// The checkpoint that KCL must store. Without a sequence number, it is the end of the shard.
    Checkpoint {
        sequence_number: Option<&'a str>,
        sub_sequence_number: Option<u64>,
    },
}
