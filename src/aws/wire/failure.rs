//! Reads the code and the message of an error.

use std::borrow::Cow;

use aws_smithy_runtime_api::http::Headers;
use aws_smithy_schema::error_envelope::sanitize_error_code;
use aws_smithy_schema::serde::SerdeError;
use aws_smithy_types::error::metadata::{Builder, ErrorMetadata};

use super::source::Source;

const CODE: &str = "x-amzn-errortype";

/// The code and the message in a body, as far as it has them.
#[derive(Default)]
pub(super) struct Envelope<'a> {
    kind: Option<Cow<'a, str>>,
    code: Option<Cow<'a, str>>,
    message: Option<Cow<'a, str>>,
}

impl<'a> Envelope<'a> {
    /// Reads a body to its end.
    pub(super) fn read(mut source: impl Source<'a>) -> Result<Self, SerdeError> {
        let mut envelope = Envelope::default();
        let mut map = source.begin_map()?;
        while let Some(key) = source.next_key(&mut map)? {
            let member = match &*key {
                b"__type" => &mut envelope.kind,
                b"code" => &mut envelope.code,
                b"message" | b"Message" | b"errorMessage" => &mut envelope.message,
                _ => {
                    source.skip(1)?;
                    continue;
                }
            };
            match source.is_null() {
                true => source.read_null()?,
                false => *member = Some(source.read_text()?),
            }
        }
        source.end()?;
        Ok(envelope)
    }

    /// Returns the metadata of the error. The code in the header counts more than that in the body.
    pub(super) fn metadata(self, headers: &Headers) -> Builder {
        let mut metadata = ErrorMetadata::builder();
        let in_body = self.code.as_deref().or(self.kind.as_deref());
        if let Some(code) = headers.get(CODE).or(in_body) {
            metadata = metadata.code(sanitize_error_code(code));
        }
        if let Some(message) = self.message {
            metadata = metadata.message(message);
        }
        metadata
    }
}
