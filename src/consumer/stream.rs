//! The name or ARN of a stream.

use std::fmt;
use std::sync::Arc;

/// A stream, identified by its name or its ARN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamId {
    name: Arc<str>,
    arn: Option<String>,
}

impl StreamId {
    /// Returns the stream's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Returns the stream's ARN, if the stream is identified by it.
    pub fn arn(&self) -> Option<&str> {
        self.arn.as_deref()
    }

    /// Returns the arguments of calls that take either: the name without an ARN, or the ARN alone.
    pub(crate) fn name_or_arn(&self) -> (Option<String>, Option<String>) {
        match &self.arn {
            Some(arn) => (None, Some(arn.clone())),
            None => (Some(self.name.to_string()), None),
        }
    }
}

impl From<&str> for StreamId {
    fn from(text: &str) -> Self {
        // arn:aws:kinesis:us-east-1:123456789012:stream/orders
        let arn = text.starts_with("arn:").then(|| text.to_owned());
        let name = arn
            .as_deref()
            .and_then(|arn| arn.rsplit_once(":stream/"))
            .map_or(text, |(_, name)| name);
        StreamId {
            name: name.into(),
            arn,
        }
    }
}

impl From<String> for StreamId {
    fn from(text: String) -> Self {
        text.as_str().into()
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
        f.write_str(self.arn.as_deref().unwrap_or(&self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arn_gives_the_name() {
        let stream = StreamId::from("arn:aws:kinesis:eu-west-1:123456789012:stream/orders");
        assert_eq!(&**stream.name(), "orders");
        assert!(stream.arn().is_some());
        assert_eq!(
            StreamId::from("orders").name_or_arn(),
            (Some("orders".to_owned()), None)
        );
    }
}
