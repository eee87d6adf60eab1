//! Dead letters as objects in a bucket.

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

/// Writes letters to an S3 bucket, each an object as [`DeadLetter::encode`] writes it: a JSON header in one line, a line
/// feed, the failed record's payload. The largest record fits.
///
/// - An object's key is made of what the letter says, never of the time: `<prefix><stream>/<shard>/<year>/<month>/<day>/
///   <sequence number>-<sub-sequence number>-<letter id>`, of the day on which the record arrived, in UTC. A letter that is
///   written again is written over itself, and a listing has the letters of a shard's day in the shard's order.
/// - Letters of one partition key are written one after the other, each when the one ahead of it is confirmed; of different
///   keys 16 at a time.
/// - What fails is tried 5 times, after up to 100, 200, 400 and 800 ms (full jitter), then it is
///   [`Unavailable`](SinkError::Unavailable).
/// - The client's own retries are switched off for writing. An attempt ends after 30 s unless the client sets an
///   operation-attempt timeout. All else of the client is kept.
///
/// A bucket's name may be anybody's once the bucket is deleted: with an [owner](S3::expected_bucket_owner) nobody else
/// gets the letters.
///
/// Permissions: `s3:PutObject` on the objects, `s3:ListBucket` on the bucket.
pub struct S3 {
    // Without retries: for PutObject.
    writer: Located<Client>,
    // With the retries that the user set: for HeadBucket, and for payloads of letters that are elsewhere.
    reader: Located<Client>,
    bucket: String,
    prefix: String,
    owner: Option<String>,
    rests: Rests,
}

/// The metadata of an object that identifies the write. A reader tells by it whether an object was written again since.
pub(crate) const WRITE_METADATA: &str = "redrive-write";

/// So many calls beside each other.
const LIMITS: Limits = Limits {
    entries: 16,
    bytes: u64::MAX,
};

impl S3 {
    /// A sink that writes to this bucket.
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

    /// What each key begins with, such as `dead-letters/`. Default: nothing.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The account that the bucket must belong to; if it does not, nothing is written. Default: not looked at.
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
            // Without a key there is no order.
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

    /// The largest record fits.
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
