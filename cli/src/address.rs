//! Addresses of dead letters and stores, as written on a command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use redrive::StreamId;
use redrive::record::ParseStreamIdError;

/// The address of dead letters, to read or to write.
///
/// | address | names |
/// |---|---|
/// | `file:letters.jsonl` | a file |
/// | `kinesis:orders-dlq` | a stream, by its name or ARN |
/// | `sqs:orders-dlq` | a queue, by its name or URL |
/// | `sns:arn:aws:sns:…` | a topic, by its ARN; dead letters can be written to a topic and not read |
/// | `s3:bucket/prefix/` | objects of a bucket; also written `s3://bucket/prefix/` |
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Address {
    /// A file.
    File(PathBuf),
    /// A stream.
    Kinesis(StreamId),
    /// A queue's name or URL.
    Sqs(String),
    /// A topic's ARN.
    Sns(String),
    /// Objects of a bucket.
    S3 {
        /// The bucket.
        bucket: String,
        /// The prefix of the objects' keys.
        prefix: String,
    },
}

/// Returns the region in the stream's ARN.
pub(crate) fn region_of_stream(stream: &StreamId) -> Option<&str> {
    stream.arn().and_then(region_of_arn)
}

/// Returns the region of an ARN: `arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE`.
pub(crate) fn region_of_arn(text: &str) -> Option<&str> {
    let mut parts = text.strip_prefix("arn:")?.split(':');
    parts.nth(2).filter(|region| !region.is_empty())
}

/// Returns the region in a queue's URL: `https://sqs.REGION.amazonaws.com/ACCOUNT/QUEUE`.
pub(crate) fn region_of_queue(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let host = rest.split(['/', ':']).next()?;
    let of_aws = [".amazonaws.com", ".amazonaws.com.cn", ".api.aws"];
    if !of_aws.iter().any(|end| host.ends_with(end)) {
        return None;
    }
    let mut labels = host.split('.').skip_while(|label| *label != "sqs");
    labels.nth(1)
}

/// The address of a ledger, of checkpoints or of idempotency keys: `redb:file` or `dynamodb:table`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum StoreAddress {
    /// A file.
    Redb(PathBuf),
    /// A table.
    DynamoDb(String),
}

/// The error of a text that is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseAddressError {
    /// The text starts with no known scheme.
    #[error("invalid address {text:?}: write {expected}")]
    Scheme {
        /// The text.
        text: String,
        /// The valid forms.
        expected: &'static str,
    },
    /// The text names nothing after its scheme.
    #[error("invalid address {text:?}: {lacks}; write {expected}")]
    Incomplete {
        /// The text.
        text: String,
        /// The missing part.
        lacks: &'static str,
        /// An example of a valid address.
        expected: &'static str,
    },
    /// The text after `kinesis:` is neither the name nor the ARN of a stream.
    #[error(transparent)]
    Stream(#[from] ParseStreamIdError),
}

const LETTERS: &str = "file:PATH, kinesis:STREAM, sqs:QUEUE, sns:TOPIC_ARN or s3:BUCKET/PREFIX";
const STORES: &str = "redb:FILE or dynamodb:TABLE";

impl FromStr for Address {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, ParseAddressError> {
        let (scheme, rest) = split(text, LETTERS)?;
        let named = |lacks, expected| match rest.is_empty() {
            true => Err(incomplete(text, lacks, expected)),
            false => Ok(rest.to_owned()),
        };
        match scheme {
            "file" => Ok(Address::File(named("no file", "file:letters.jsonl")?.into())),
            "kinesis" => Ok(Address::Kinesis(
                named("no stream", "kinesis:orders-dlq")?.parse()?,
            )),
            "sqs" => Ok(Address::Sqs(named("no queue", "sqs:orders-dlq")?)),
            "sns" => match rest.starts_with("arn:") {
                true => Ok(Address::Sns(rest.to_owned())),
                false => Err(incomplete(
                    text,
                    "no topic ARN",
                    "sns:arn:aws:sns:eu-west-1:111122223333:orders-dlq",
                )),
            },
            "s3" => {
                let rest = rest.strip_prefix("//").unwrap_or(rest);
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                match bucket.is_empty() {
                    true => Err(incomplete(text, "no bucket", "s3:bucket/prefix/")),
                    false => Ok(Address::S3 {
                        bucket: bucket.to_owned(),
                        prefix: prefix.to_owned(),
                    }),
                }
            }
            _ => Err(scheme_error(text, LETTERS)),
        }
    }
}

impl FromStr for StoreAddress {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, ParseAddressError> {
        match split(text, STORES)? {
            ("redb", "") => Err(incomplete(text, "no file", "redb:replay.redb")),
            ("dynamodb", "") => Err(incomplete(text, "no table", "dynamodb:replay-ledger")),
            ("redb", file) => Ok(StoreAddress::Redb(file.into())),
            ("dynamodb", table) => Ok(StoreAddress::DynamoDb(table.to_owned())),
            _ => Err(scheme_error(text, STORES)),
        }
    }
}

fn split<'a>(text: &'a str, expected: &'static str) -> Result<(&'a str, &'a str), ParseAddressError> {
    text.split_once(':').ok_or_else(|| scheme_error(text, expected))
}

fn scheme_error(text: &str, expected: &'static str) -> ParseAddressError {
    ParseAddressError::Scheme {
        text: text.to_owned(),
        expected,
    }
}

fn incomplete(text: &str, lacks: &'static str, expected: &'static str) -> ParseAddressError {
    ParseAddressError::Incomplete {
        text: text.to_owned(),
        lacks,
        expected,
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::File(path) => write!(f, "file:{}", path.display()),
            Address::Kinesis(stream) => write!(f, "kinesis:{stream}"),
            Address::Sqs(queue) => write!(f, "sqs:{queue}"),
            Address::Sns(topic) => write!(f, "sns:{topic}"),
            Address::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreAddress::Redb(path) => write!(f, "redb:{}", path.display()),
            StoreAddress::DynamoDb(table) => write!(f, "dynamodb:{table}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn letters(text: &str) -> Result<Address, ParseAddressError> {
        text.parse()
    }

    #[test]
    fn each_has_its_form() {
        assert_eq!(letters("file:a b.jsonl"), Ok(Address::File("a b.jsonl".into())));
        let stream = |text: &str| Address::Kinesis(text.into());
        assert_eq!(letters("kinesis:dlq"), Ok(stream("dlq")));
        let arn = "arn:aws:kinesis:us-east-1:111122223333:stream/dlq";
        assert_eq!(letters(&format!("kinesis:{arn}")), Ok(stream(arn)));
        let url = "https://sqs.eu-west-1.amazonaws.com/111122223333/dlq";
        assert_eq!(letters(&format!("sqs:{url}")), Ok(Address::Sqs(url.to_owned())));
        let s3 = |bucket: &str, prefix: &str| Address::S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        };
        assert_eq!(letters("s3:b"), Ok(s3("b", "")));
        assert_eq!(letters("s3://b/p/q"), Ok(s3("b", "p/q")));
        assert_eq!("redb:x".parse(), Ok(StoreAddress::Redb("x".into())));
        assert_eq!("dynamodb:x".parse(), Ok(StoreAddress::DynamoDb("x".to_owned())));
    }

    #[test]
    fn an_arn_or_a_queue_url_tells_the_region() {
        let region = |text: &str| region_of_stream(&text.into()).map(str::to_owned);
        let arn = "arn:aws-cn:kinesis:cn-north-1:111122223333:stream/dlq";
        assert_eq!(region(arn).as_deref(), Some("cn-north-1"));
        assert_eq!(region("dlq"), None);
        for (url, region) in [
            ("https://sqs.eu-west-1.amazonaws.com/1/dlq", Some("eu-west-1")),
            (
                "https://vpce-1a.sqs.eu-west-2.vpce.amazonaws.com/1/dlq",
                Some("eu-west-2"),
            ),
            ("http://localhost:4566/1/dlq", None),
            ("http://sqs.us-east-1.localhost.localstack.cloud:4566/1/dlq", None),
            ("dlq", None),
        ] {
            assert_eq!(region_of_queue(url), region, "{url}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_what_would_be_right() {
        for text in [
            "",
            "letters.jsonl",
            "s3",
            "s3:",
            "s3:/p",
            "sns:dlq",
            "kinesis:a/b",
            "kinesis:arn:aws:kinesis:us-east-1:111122223333:stream/",
            "kinesis:arn:aws:kinesis::111122223333:stream/dlq",
            "kinesis:arn:aws:sqs:us-east-1:111122223333:dlq",
            "redb:x",
            "https://x",
        ] {
            let error = letters(text).expect_err(text).to_string();
            assert!(error.contains("write "), "{error}");
        }
        for text in ["replay.redb", "redb:", "dynamodb:", "file:x"] {
            let error = text.parse::<StoreAddress>().expect_err(text).to_string();
            assert!(error.contains("write "), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same(text in "(file|kinesis|sqs|sns:arn|s3)?:?.{0,30}") {
            if let Ok(address) = letters(&text) {
                prop_assert_eq!(letters(&address.to_string()), Ok(address));
            }
        }
    }
}
