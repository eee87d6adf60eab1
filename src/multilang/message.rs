//! What the daemon and its child say to each other.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::failure::BoxError;
use crate::record::{Position, Record, Source};

/// From the daemon. (`MessageWriter` and the classes beside it, in KCL's `multilang` package.)
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
    /// Answers a checkpoint of ours.
    Checkpoint {
        error: Option<String>,
    },
    LeaseLost,
    ShardEnded,
    ShutdownRequested,
    /// As older versions say that the lease is lost, the shard has ended or a shutdown is requested.
    Shutdown {
        reason: Option<String>,
    },
}

impl Incoming {
    /// What its status is to name.
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

    /// In today's words. (`ShutdownReason` in KCL's `lifecycle` package; TERMINATE and ZOMBIE before version 2.)
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
    /// Milliseconds since 1970.
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

/// Where KCL says that a shard begins: at the record of a checkpoint, or at a place that it knows by name.
pub(super) fn beginning(sequence_number: Option<String>, sub_sequence_number: Option<u64>) -> Position {
    match sequence_number.map(TryInto::try_into) {
        Some(Ok(sequence_number)) => Position::Record {
            sequence_number,
            sub_sequence_number: sub_sequence_number.unwrap_or_default(),
        },
        _ => Position::TrimHorizon,
    }
}

/// To the daemon.
#[derive(Debug, Serialize)]
#[serde(tag = "action", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(super) enum Outgoing<'a> {
    /// All that this action asked for is done.
    Status { response_for: &'a str },
    /// To be stored. Without a number: the end of the shard.
    Checkpoint {
        sequence_number: Option<&'a str>,
        sub_sequence_number: Option<u64>,
    },
}
