//! A sink that writes dead letters as objects to a bucket.

use std::fmt;

use async_trait::async_trait;
use aws_sdk_s3::Client;

use super::schedule::{Entry, Limits, Request, Schedule, SharedError};
use super::service::{self, CallError, Rests, Service};
use super::{DeadLetter, DeadLetterSink, Receipt, SinkError, SourceStream, Storage, TargetError, Warning};
use crate::aws::{self, Located};

mod call;
mod key;
mod payload;

/// Writes dead letters to an S3 bucket, each as one object. [`DeadLetter::encode`] defines its content: a
/// JSON header in one line, a line feed, and the failed record's payload. The largest record fits.
///
/// - An object's key depends only on the dead letter, never on the time of writing:
///   `<prefix><stream>/<shard>/<year>/<month>/<day>/<sequence number>-<sub-sequence number>-<id>`. The day is
///   the one on which the record arrived, in UTC; the id is that of the dead letter. A dead letter that is
///   written again overwrites itself. A listing of a shard's day is in the shard's order.
/// - Dead letters of one partition key are written one after the other, each when the one ahead of it is
///   confirmed. Up to 16 dead letters of different keys are written concurrently.
/// - A failed write is retried after up to 100, 200, 400 and 800 ms (full jitter). After 5 tries the result
///   is [`Unavailable`](SinkError::Unavailable).
/// - The client's own retries are disabled for writing. An attempt ends after 30 s unless the client sets an
///   operation-attempt timeout. All other settings of the client are kept.
///
/// Once a bucket is deleted, any account may create a bucket with the same name. With an expected
/// [owner](S3::expected_bucket_owner), no other account receives the dead letters.
///
/// Permissions: `s3:PutObject` on the objects, `s3:ListBucket` on the bucket.
pub struct S3 {
    // A client without retries, for PutObject.
    writer: Located<Client>,
    // A client with the user's retries, for HeadBucket and for payloads of dead letters in other sinks.
    reader: Located<Client>,
    bucket: String,
    prefix: String,
    owner: Option<String>,
    rests: Rests,
}

/// The metadata key whose value identifies the write of an object. A reader uses it to detect that an object
/// was written again.
pub(crate) const WRITE_METADATA: &str = "redrive-write";

/// The maximum number of concurrent calls.
const LIMITS: Limits = Limits {
    entries: 16,
    bytes: u64::MAX,
};

impl S3 {
    /// Creates a sink that writes to this bucket.
    pub fn new(client: Client, bucket: impl Into<String>) -> Self {
        S3 {
            reader: aws::s3::with_timeout(&client, aws::ATTEMPT_TIMEOUT),
            writer: aws::s3::without_retries(&client, aws::ATTEMPT_TIMEOUT),
            bucket: bucket.into(),
            prefix: String::new(),
            owner: None,
            rests: Rests::new(),
        }
    }

    /// Sets the prefix of each key, such as `dead-letters/`. Default: empty.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the account that must own the bucket. If another account owns it, nothing is written. Default:
    /// not checked.
    #[must_use]
    pub fn expected_bucket_owner(mut self, account: impl Into<String>) -> Self {
        self.owner = Some(account.into());
        self
    }

    /// Makes the jitter repeatable.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.rests = Rests::seeded(seed);
        self
    }

    fn entry(&self, letter: &DeadLetter) -> Entry {
        let data = letter.encode();
        Entry {
            // Dead letters without a key have no order.
            key: match &letter.partition_key {
                Some(key) => format!("key {key}"),
                None => letter.id.to_string(),
            },
            bytes: data.len() as u64,
            data,
            deduplication_id: String::new(),
            place: key::of(&self.prefix, letter),
        }
    }
}

impl Service for S3 {
    async fn call(
        &self,
        _: &[DeadLetter],
        schedule: &mut Schedule,
        request: &Request,
    ) -> Result<Vec<Result<Receipt, SharedError>>, CallError> {
        Ok(self.put_objects(schedule, request).await)
    }

    /// Unlimited, because the largest record fits into an object.
    const LARGEST_LIMIT: u64 = u64::MAX;

    fn known_limit(&self) -> u64 {
        Self::LARGEST_LIMIT
    }

    async fn ask_target_for_limit(&self) -> Option<u64> {
        None
    }

    fn rests(&self) -> &Rests {
        &self.rests
    }
}

#[async_trait]
impl DeadLetterSink for S3 {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        let entries = letters.iter().map(|letter| self.entry(letter)).collect();
        service::write(self, letters, Schedule::new(entries, LIMITS)).await
    }

    async fn check(&self, _: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        let call = self.reader.head_bucket().bucket(&self.bucket);
        match call.set_expected_bucket_owner(self.owner.clone()).send().await {
            Ok(_) => Ok(Vec::new()),
            Err(error) => Err(TargetError::Unreachable {
                name: self.bucket.clone(),
                source: {
                    let task = format!("find the dead-letter bucket {:?}", self.bucket);
                    self.reader.failed(task, "s3:ListBucket", error).into()
                },
            }),
        }
    }

    fn name(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix)
    }

    fn storage(&self) -> Vec<Storage> {
        vec![Storage::Objects {
            bucket: self.bucket.clone(),
            prefix: self.prefix.clone(),
        }]
    }
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3")
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}
