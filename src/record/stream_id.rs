//! The name or ARN of a stream.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::config::ConfigError;

/// A stream, identified by its name or its ARN. Clones share the text.
///
/// Every API that takes a stream takes `impl Into<StreamId>`: a name such as `orders`, or an ARN such as
/// `arn:aws:kinesis:eu-west-1:111122223333:stream/orders`. With an ARN, the calls to Kinesis name the ARN,
/// and the client's region must be that of the ARN. Records, dead letters, checkpoints, events and metrics
/// always have the [name](StreamId::name).
///
/// A conversion from a string accepts any text. `build()`, or the first call where there is no `build()`,
/// returns an error for a text that is neither a name nor an ARN. To check a text at once, parse it:
///
/// ```
/// use redrive::StreamId;
///
/// let orders: StreamId = "arn:aws:kinesis:eu-west-1:111122223333:stream/orders".parse()?;
/// assert_eq!(orders.name(), "orders");
/// assert!("arn:aws:sqs:eu-west-1:111122223333:orders".parse::<StreamId>().is_err());
/// # Ok::<(), redrive::record::ParseStreamIdError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StreamId {
    name: Arc<str>,
    arn: Option<Arc<str>>,
}

impl StreamId {
    /// Returns the stream's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the stream's ARN, if the stream is identified by it.
    pub fn arn(&self) -> Option<&str> {
        self.arn.as_deref()
    }

    /// Returns the stream's name, shared.
    pub(crate) fn shared_name(&self) -> Arc<str> {
        self.name.clone()
    }

    /// Returns the arguments of calls that take either: the name without an ARN, or the ARN alone.
    #[cfg(feature = "kinesis")]
    pub(crate) fn name_or_arn(&self) -> (Option<String>, Option<String>) {
        match self.arn() {
            Some(arn) => (None, Some(arn.to_owned())),
            None => (Some(self.name().to_owned()), None),
        }
    }

    /// Checks that the text is a name or an ARN. `setting` is the method that took the stream.
    pub(crate) fn check(&self, setting: &'static str) -> Result<(), ConfigError> {
        let text = self.arn().unwrap_or(self.name());
        check(text).map_err(|error| ConfigError::new(setting, error.to_string()))
    }
}

/// The error for a text that is neither the name nor the ARN of a Kinesis stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid stream {text:?}: {problem}; write a name such as orders, or an ARN such as \
     arn:aws:kinesis:eu-west-1:111122223333:stream/orders"
)]
pub struct ParseStreamIdError {
    text: String,
    problem: &'static str,
}

fn check(text: &str) -> Result<(), ParseStreamIdError> {
    let problem = match text.starts_with("arn:") {
        true => problem_of_arn(text),
        false => problem_of_name(text),
    };
    match problem {
        None => Ok(()),
        // Truncated, as the text may be anything and the error must stay readable.
        Some(problem) => Err(ParseStreamIdError {
            text: text.chars().take(256).collect(),
            problem,
        }),
    }
}

/// Checks `arn:PARTITION:kinesis:REGION:ACCOUNT:stream/NAME`.
fn problem_of_arn(arn: &str) -> Option<&'static str> {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let [_, partition, service, region, account, resource] = parts[..] else {
        return Some("the ARN is incomplete");
    };
    if service != "kinesis" {
        return Some("the ARN belongs to another service than Kinesis");
    }
    if [partition, region, account].contains(&"") {
        return Some("the ARN has no partition, region or account");
    }
    match resource.strip_prefix("stream/") {
        None => Some("the ARN has no `:stream/`"),
        Some(name) if name.contains("/consumer/") => Some("the ARN is that of a consumer"),
        Some(name) => problem_of_name(name),
    }
}

/// Checks a name against the pattern `[a-zA-Z0-9_.-]{1,128}` (`StreamName` in the Kinesis API reference).
fn problem_of_name(name: &str) -> Option<&'static str> {
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    match (1..=128).contains(&name.len()) && name.bytes().all(is_valid) {
        true => None,
        false => Some("a stream's name has 1 to 128 letters, digits and characters of `_.-`"),
    }
}

impl FromStr for StreamId {
    type Err = ParseStreamIdError;

    fn from_str(text: &str) -> Result<Self, ParseStreamIdError> {
        check(text)?;
        Ok(text.into())
    }
}

impl From<Arc<str>> for StreamId {
    fn from(text: Arc<str>) -> Self {
        if !text.starts_with("arn:") {
            return StreamId {
                name: text,
                arn: None,
            };
        }
        let name = match text.split_once(":stream/") {
            Some((_, name)) => name.into(),
            None => text.clone(),
        };
        StreamId {
            name,
            arn: Some(text),
        }
    }
}

impl From<&str> for StreamId {
    fn from(text: &str) -> Self {
        Arc::<str>::from(text).into()
    }
}

impl From<String> for StreamId {
    fn from(text: String) -> Self {
        Arc::<str>::from(text).into()
    }
}

impl From<&String> for StreamId {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

/// Writes the ARN if there is one, otherwise the name.
impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.arn().unwrap_or(self.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kinesis:eu-west-1:111122223333:stream/orders";

    #[test]
    fn arn_gives_the_name() {
        let stream = StreamId::from(ARN);
        assert_eq!((stream.name(), stream.arn()), ("orders", Some(ARN)));
        assert_eq!(stream.to_string(), ARN);
        let stream = StreamId::from("orders");
        assert_eq!((stream.name(), stream.arn()), ("orders", None));
    }

    #[cfg(feature = "kinesis")]
    #[test]
    fn calls_name_the_arn_or_the_name() {
        assert_eq!(StreamId::from(ARN).name_or_arn(), (None, Some(ARN.to_owned())));
        let name = Some("orders".to_owned());
        assert_eq!(StreamId::from("orders").name_or_arn(), (name, None));
    }

    #[test]
    fn names_and_arns_are_valid() {
        for text in [
            "orders",
            "Orders_2.new-1",
            &"n".repeat(128),
            ARN,
            "arn:aws-cn:kinesis:cn-north-1:111122223333:stream/orders",
        ] {
            assert_eq!(text.parse(), Ok(StreamId::from(text)));
        }
    }

    #[test]
    fn invalid_stream_is_refused_with_the_reason() {
        let long = "n".repeat(129);
        for (text, problem) in [
            ("", "1 to 128 letters"),
            (&*long, "1 to 128 letters"),
            ("a/b", "1 to 128 letters"),
            ("kinesis:orders", "1 to 128 letters"),
            ("arn:", "incomplete"),
            ("arn:aws:sqs:us-east-1:111122223333:orders", "another service"),
            (
                "arn:aws:kinesis::111122223333:stream/orders",
                "no partition, region or account",
            ),
            ("arn:aws:kinesis:us-east-1:111122223333:orders", "no `:stream/`"),
            (
                "arn:aws:kinesis:us-east-1:111122223333:stream/",
                "1 to 128 letters",
            ),
            (
                "arn:aws:kinesis:us-east-1:111122223333:stream/orders/consumer/billing:1545084650",
                "of a consumer",
            ),
        ] {
            let error = text.parse::<StreamId>().expect_err(text).to_string();
            assert!(error.contains(problem) && error.contains("write "), "{error}");
            let error = StreamId::from(text).check("builder").expect_err(text);
            assert_eq!(error.setting(), "builder");
            assert!(error.to_string().contains(problem), "{error}");
        }
    }
}
