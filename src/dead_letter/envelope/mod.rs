//! The content of a dead letter: everything needed to understand a record's failure and to replay the record.
//!
//! A dead letter is written in one of two forms. [`DeadLetter::encode`] writes a JSON header in one line, a
//! line feed, and the payload's own bytes: the payload does not grow by base64, and `head -n 1 | jq` reads
//! the header. A JSON line ([`DeadLetter::to_json_line`]) contains the payload as base64, for files that are
//! read line by line.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::failure::BoxError;
use crate::failure::{Class, Failure, Scope};
use crate::record::DeadLetterId;
use crate::record::{Record, SequenceNumber, ShardId};
use crate::rfc3339::{self, to_millis};
use crate::wall_clock;

mod bounded;
mod reason;
mod report;

use bounded::cut;

pub use reason::{ParseReasonError, Reason};
pub use report::{AttemptReport, Attempts, ErrorReport};

const MAX_NAME_BYTES: usize = 512;
const MAX_CODE_BYTES: usize = 128;
const MAX_TRACE_CONTEXT_BYTES: usize = 1_024;

/// A record that failed permanently, with its payload, error and attempts. Schema version 1.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The id of this dead letter: unique to the record and its redrive count, and the same for every copy.
    pub id: DeadLetterId,
    /// The id that all dead letters of the record share, however often it is replayed.
    pub origin: DeadLetterId,
    /// The application whose processor failed.
    pub application: String,
    /// The stream's name.
    pub stream: String,
    /// The shard that the record was read from.
    pub shard: ShardId,
    /// The record's sequence number.
    pub sequence_number: SequenceNumber,
    /// The record's index inside an aggregated record; 0 for a record that is not aggregated.
    pub sub_sequence_number: u64,
    /// The partition key.
    pub partition_key: Option<String>,
    /// The time at which Kinesis received the record, if it is known.
    #[serde(rename = "arrived_at", with = "rfc3339::optional", default)]
    pub arrival: Option<SystemTime>,
    /// The time at which the dead letter was made.
    #[serde(with = "rfc3339")]
    pub dead_lettered_at: SystemTime,
    /// The reason why the record became a dead letter.
    pub reason: Reason,
    /// The class of the last failure: whether another attempt would help.
    pub class: Class,
    /// The scope of the last failure: whose fault it was.
    pub scope: Scope,
    /// The last error's short code, such as an AWS error code.
    pub code: Option<String>,
    /// The last error.
    pub error: ErrorReport,
    /// The attempts.
    pub attempts: Attempts,
    /// The processor's name, by default its Rust type.
    pub processor: String,
    /// The processor's version, if one was set.
    pub processor_version: Option<String>,
    /// The trace that the record belonged to, as its producer wrote it.
    pub trace_context: Option<String>,
    /// The number of earlier replays of the record.
    pub redrive_count: u32,
    /// The time at which Kinesis first received the record, if the record was replayed into a stream and the
    /// time is known.
    #[serde(
        rename = "first_arrived_at",
        with = "rfc3339::optional",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub first_arrival: Option<SystemTime>,
    /// True if data was removed before writing ([`Redact`](super::Redact)): the dead letter may differ from
    /// the record that was put into the stream.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub redacted: bool,
    /// True if the record may have been processed. Lambda gave up the record together with others, and
    /// redrive cannot tell which of them failed (`replay::Rehydrate`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspect: bool,
    /// The place of the payload, if the dead letter does not contain it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_at: Option<String>,
    /// The SHA-256 digest of a payload that the dead letter does not contain, as 64 hex digits. Dead letters
    /// of older versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_sha256: Option<String>,
    /// The payload's length in bytes.
    pub payload_bytes: u64,
    /// The record's payload.
    #[serde(skip)]
    pub payload: Bytes,
}

/// The reason why a dead letter cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes were not written by redrive.
    #[error("not a redrive dead letter")]
    Foreign,
    /// The dead letter was written by a newer version of redrive.
    #[error(
        "the dead letter has schema version {found}, and this redrive reads up to version {supported}; use a newer redrive"
    )]
    NewerSchema {
        /// The dead letter's schema version.
        found: u32,
        /// The newest schema version that this version of redrive reads.
        supported: u32,
    },
    /// The payload is shorter or longer than the header states.
    #[error("the payload has {found} bytes, but its dead letter states {expected}: it was cut or mixed up")]
    PayloadLength {
        /// The length that the header states, in bytes.
        expected: u64,
        /// The length that was found, in bytes.
        found: u64,
    },
    /// The header is damaged.
    #[error("the dead letter's header cannot be read")]
    Header(#[source] serde_json::Error),
    /// The payload's base64 is damaged.
    #[error("the dead letter's payload cannot be read")]
    Payload(#[source] BoxError),
}

impl DeadLetter {
    /// The schema version that is written, and the newest one that is read.
    pub const SCHEMA_VERSION: u32 = 1;
    /// The maximum number of bytes that the header adds to the payload.
    pub const MAX_ENVELOPE_BYTES: usize = 32 * 1024;

    const KIND: &str = "redrive.dead_letter";
    // The beginning of every dead letter: it distinguishes a torn one from a foreign text.
    const BEGINNING: &[u8] = br#"{"kind":"redrive.dead_letter""#;

    /// Creates a dead letter for a record that `application` gave up with this failure.
    pub fn new(application: &str, record: &Record, reason: Reason, failure: &Failure) -> Self {
        let redriven = record.redriven();
        let redrive_count = redriven.map_or(0, |redriven| redriven.count);
        DeadLetter {
            id: letter_id(application, record, Some(redrive_count)),
            origin: redriven.map_or_else(
                || letter_id(application, record, None),
                |redriven| redriven.origin,
            ),
            application: application.to_owned(),
            stream: record.stream().to_owned(),
            shard: record.shard().clone(),
            sequence_number: record.sequence_number().clone(),
            sub_sequence_number: record.sub_sequence_number(),
            partition_key: record.partition_key().map(str::to_owned),
            arrival: record.arrival().map(to_millis),
            dead_lettered_at: to_millis(wall_clock::now()),
            reason,
            class: failure.verdict().class(),
            scope: failure.verdict().scope(),
            code: failure.verdict().code().map(|code| cut(code, MAX_CODE_BYTES)),
            error: ErrorReport::new("", failure),
            attempts: Attempts::default(),
            processor: String::new(),
            processor_version: None,
            trace_context: None,
            redrive_count,
            first_arrival: redriven.and_then(|redriven| redriven.arrival),
            redacted: false,
            suspect: false,
            payload_at: None,
            payload_sha256: None,
            payload_bytes: record.payload().len() as u64,
            payload: record.payload().clone(),
        }
    }

    /// Adds the attempts, the type of the error, and the processor's name and version.
    pub(crate) fn with_attempts(
        mut self,
        attempts: Attempts,
        error_type: &str,
        processor: &str,
        version: Option<&str>,
    ) -> Self {
        self.attempts = attempts;
        self.error.type_name = cut(error_type, MAX_NAME_BYTES);
        self.processor = cut(processor, MAX_NAME_BYTES);
        self.processor_version = version.map(|version| cut(version, MAX_NAME_BYTES));
        self
    }

    /// Adds the trace that the record belonged to.
    pub(crate) fn with_trace_context(mut self, context: Option<String>) -> Self {
        self.trace_context = context.map(|context| cut(&context, MAX_TRACE_CONTEXT_BYTES));
        self
    }

    /// Returns a JSON header in one line, a line feed, and the payload's own bytes.
    pub fn encode(&self) -> Bytes {
        let header = self.header(None);
        let mut out = BytesMut::with_capacity(header.len() + 1 + self.payload.len());
        out.put_slice(&header);
        out.put_u8(b'\n');
        out.put_slice(&self.payload);
        out.freeze()
    }

    /// Reads a dead letter that [`encode`](DeadLetter::encode) or [`to_json_line`](DeadLetter::to_json_line)
    /// wrote. In the first case the payload is a slice of `bytes`, without a copy.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let end = bytes
            .iter()
            .position(|&byte| byte == b'\n')
            .unwrap_or(bytes.len());
        let (mut letter, payload) = Self::read_header(&bytes[..end])?;
        letter.payload = match payload {
            Some(payload) => BASE64
                .decode(payload)
                .map_err(|error| DecodeError::Payload(error.into()))?
                .into(),
            None => bytes.slice((end + 1).min(bytes.len())..),
        };
        letter.checked()
    }

    /// Returns the whole dead letter as one line of JSON without a line feed, with the payload as base64. The
    /// line contains no character that XML forbids, so every transport for text accepts it.
    pub fn to_json_line(&self) -> Vec<u8> {
        without_noncharacters(self.header(Some(BASE64.encode(&self.payload))))
    }

    /// Reads a dead letter that [`to_json_line`](DeadLetter::to_json_line) wrote.
    pub fn from_json_line(line: &[u8]) -> Result<Self, DecodeError> {
        let (mut letter, payload) = Self::read_header(line)?;
        letter.payload = BASE64
            .decode(payload.unwrap_or_default())
            .map_err(|error| DecodeError::Payload(error.into()))?
            .into();
        letter.checked()
    }

    fn header(&self, payload: Option<String>) -> Vec<u8> {
        #[derive(Serialize)]
        struct Header<'a> {
            kind: &'a str,
            schema_version: u32,
            #[serde(flatten)]
            letter: &'a DeadLetter,
            #[serde(skip_serializing_if = "Option::is_none")]
            payload: Option<String>,
        }
        serde_json::to_vec(&Header {
            kind: Self::KIND,
            schema_version: Self::SCHEMA_VERSION,
            letter: self,
            payload,
        })
        // Cannot fail: a dead letter contains only strings, numbers and clamped times.
        .unwrap_or_default()
    }

    fn read_header(json: &[u8]) -> Result<(Self, Option<String>), DecodeError> {
        #[derive(Deserialize)]
        struct Stamp {
            kind: Option<String>,
            schema_version: Option<u32>,
        }
        #[derive(Deserialize)]
        struct Header {
            #[serde(flatten)]
            letter: DeadLetter,
            payload: Option<String>,
        }
        let stamp: Stamp = serde_json::from_slice(json).map_err(|error| {
            if json.starts_with(Self::BEGINNING) {
                DecodeError::Header(error)
            } else {
                DecodeError::Foreign
            }
        })?;
        match stamp {
            Stamp {
                kind: Some(kind),
                schema_version: Some(found),
            } if kind == Self::KIND => {
                if found > Self::SCHEMA_VERSION {
                    return Err(DecodeError::NewerSchema {
                        found,
                        supported: Self::SCHEMA_VERSION,
                    });
                }
            }
            _ => return Err(DecodeError::Foreign),
        }
        let header: Header = serde_json::from_slice(json).map_err(DecodeError::Header)?;
        Ok((header.letter, header.payload))
    }

    fn checked(self) -> Result<Self, DecodeError> {
        let found = self.payload.len() as u64;
        let expected = match self.payload_at {
            None => self.payload_bytes,
            Some(_) => 0,
        };
        if found == expected {
            Ok(self)
        } else {
            Err(DecodeError::PayloadLength { expected, found })
        }
    }
}

impl std::fmt::Debug for DeadLetter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeadLetter")
            .field("id", &self.id)
            .field("application", &self.application)
            .field("stream", &self.stream)
            .field("shard", &self.shard)
            .field("sequence_number", &self.sequence_number)
            .field("sub_sequence_number", &self.sub_sequence_number)
            .field("reason", &self.reason)
            .field("class", &self.class)
            .field("scope", &self.scope)
            .field("code", &self.code)
            .field("attempts", &self.attempts.count)
            .field("payload_bytes", &self.payload_bytes)
            .finish_non_exhaustive()
    }
}

/// Escapes U+FFFE and U+FFFF, the only characters that XML forbids and JSON does not escape.
fn without_noncharacters(json: Vec<u8>) -> Vec<u8> {
    let is_one = |bytes: &[u8]| matches!(bytes, [0xef, 0xbf, 0xbe | 0xbf]);
    if json.is_ascii() || !json.windows(3).any(is_one) {
        return json;
    }
    let text = String::from_utf8_lossy(&json);
    text.replace('\u{fffe}', "\\ufffe")
        .replace('\u{ffff}', "\\uffff")
        .into_bytes()
}

/// Returns the id of a record's dead letter (with a redrive count) or of its origin (without).
fn letter_id(application: &str, record: &Record, redrive_count: Option<u32>) -> DeadLetterId {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        // The length in front of each part makes different lists of parts hash differently.
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    part(application.as_bytes());
    part(record.stream().as_bytes());
    part(record.shard().as_str().as_bytes());
    part(record.sequence_number().as_str().as_bytes());
    part(&record.sub_sequence_number().to_be_bytes());
    if let Some(count) = redrive_count {
        part(&count.to_be_bytes());
    }
    DeadLetterId::new(hash.finalize().into())
}

#[cfg(test)]
mod tests;
