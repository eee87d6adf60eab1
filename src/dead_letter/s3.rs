//! A sink that writes dead letters as objects to a bucket.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use futures_util::future::join_all;
use rand::RngExt as _;

use super::aws_writer::{
    Answers, AwsWriter, CallError, Entry, Limits, Request, Schedule, Service, SharedError, SizeLimit,
};
use super::{DeadLetter, DeadLetterSink, Receipt, SinkError, SourceStream, Storage, TargetError, Warning};
use crate::aws::{self, Located};
use crate::rfc3339;

mod payloads;

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
    write_client: Located<Client>,
    // A client with the user's retries, for HeadBucket and for payloads of dead letters in other sinks.
    read_client: Located<Client>,
    bucket: String,
    prefix: String,
    owner: Option<String>,
    writer: AwsWriter,
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
            read_client: aws::s3::with_timeout(&client, aws::ATTEMPT_TIMEOUT),
            write_client: aws::s3::without_retries(&client, aws::ATTEMPT_TIMEOUT),
            bucket: bucket.into(),
            prefix: String::new(),
            owner: None,
            // The largest record fits into an object.
            writer: AwsWriter::new(SizeLimit::fixed(u64::MAX)),
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
        self.writer.seed(seed);
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
            place: object_key(&self.prefix, letter),
        }
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

#[async_trait]
impl DeadLetterSink for S3 {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        let entries = letters.iter().map(|letter| self.entry(letter)).collect();
        self.writer.write(self, Schedule::new(entries, LIMITS)).await
    }

    async fn check(&self, _: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        let call = self.read_client.head_bucket().bucket(&self.bucket);
        match call.set_expected_bucket_owner(self.owner.clone()).send().await {
            Ok(_) => Ok(Vec::new()),
            Err(error) => Err(TargetError::Unreachable {
                name: self.bucket.clone(),
                source: {
                    let task = format!("find the dead-letter bucket {:?}", self.bucket);
                    self.read_client.failed(task, "s3:ListBucket", error).into()
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

impl Service for S3 {
    async fn call(&self, schedule: &mut Schedule, request: &Request) -> Result<Answers, CallError> {
        let calls = schedule.entries(request).map(|entry| self.put_object(entry));
        Ok(join_all(calls).await)
    }
}

impl S3 {
    async fn put_object(&self, entry: &Entry) -> Result<Receipt, SharedError> {
        let call = self
            .write_client
            .put_object()
            .bucket(&self.bucket)
            .key(&entry.place)
            .metadata(WRITE_METADATA, format!("{:016x}", rand::rng().random::<u64>()))
            .set_expected_bucket_owner(self.owner.clone())
            .body(ByteStream::from(entry.data.clone()));
        match call.send().await {
            Ok(_) => Ok(Receipt::new(format!("{}/{}", self.bucket, entry.place))),
            Err(error) => Err(Arc::new(error)),
        }
    }
}

/// The number of digits of most sequence numbers. Shorter ones are padded with zeros, so that a listing is in
/// order.
const USUAL_DIGITS: usize = 56;

/// Returns the key of a dead letter's object.
fn object_key(prefix: &str, letter: &DeadLetter) -> String {
    let DeadLetter {
        stream,
        shard,
        sub_sequence_number,
        id,
        ..
    } = letter;
    let number = letter.sequence_number.as_str();
    let day = letter.arrival.map_or_else(|| "unknown".to_owned(), day);
    format!("{prefix}{stream}/{shard}/{day}/{number:0>USUAL_DIGITS$}-{sub_sequence_number:0>10}-{id}")
}

/// Returns the day in UTC, as `year/month/day`.
fn day(time: SystemTime) -> String {
    let time = rfc3339::format(time).to_string();
    let (day, _) = time.split_once('T').unwrap_or((&time, ""));
    day.replace('-', "/")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::dead_letter::Reason;
    use crate::failure::Failure;
    use crate::record::Record;

    fn key(number: &str, sub: u64, arrival: Option<SystemTime>) -> String {
        let number = number.to_owned().try_into().expect("digits");
        let builder = Record::builder("orders", "shardId-000000000001".into(), number);
        let builder = builder.sub_sequence_number(sub);
        let record = match arrival {
            Some(arrival) => builder.arrival(arrival).build(),
            None => builder.build(),
        };
        object_key(
            "letters/",
            &DeadLetter::new("billing", &record, Reason::Permanent, &Failure::permanent("bad")),
        )
    }

    #[test]
    fn a_letter_is_where_it_says_and_nowhere_else() {
        let arrival = UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        let number = "49590338271490256608559692538361571095921575989136588898";
        let one = key(number, 3, Some(arrival));
        assert_eq!(one, key(number, 3, Some(arrival)));
        let (place, id) = one.rsplit_once('-').expect("an id");
        assert_eq!(id.len(), 64);
        assert_eq!(
            place,
            format!("letters/orders/shardId-000000000001/2026/09/21/{number}-0000000003")
        );
        assert!(key(number, 0, None).contains("/unknown/"));
    }

    #[test]
    fn a_listing_has_them_in_the_shards_order() {
        let arrival = Some(UNIX_EPOCH + Duration::from_secs(1_790_000_000));
        let keys = [
            ("9", 0),
            ("10", 2),
            ("10", 11),
            ("49590338271490256608559692538361571095921575989136588898", 0),
        ];
        let keys: Vec<String> = keys
            .iter()
            .map(|(number, sub)| key(number, *sub, arrival))
            .collect();
        assert!(keys.is_sorted(), "{keys:?}");
    }
}
