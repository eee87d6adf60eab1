//! What a function says of a batch.

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

use crate::record::SequenceNumber;

/// From where on a batch must come again, if it must: `{"batchItemFailures":[{"itemIdentifier":"…"}]}`.
///
/// Lambda sends everything again from the lowest number on, so that there is one or none. And it takes an answer with
/// an empty, missing or unknown identifier for a failure of the whole batch: none of these can be made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Response(Option<ItemFailure>);

/// A record that must come again, and all behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ItemFailure {
    /// Its sequence number; of a record inside an aggregated one, that one's.
    pub item_identifier: SequenceNumber,
}

impl Response {
    /// The whole batch is settled.
    pub fn settled() -> Self {
        Response(None)
    }

    /// This record and all behind it must come again.
    pub fn again_from(sequence_number: SequenceNumber) -> Self {
        Response(Some(ItemFailure {
            item_identifier: sequence_number,
        }))
    }

    /// The first record that must come again.
    pub fn first_unsettled(&self) -> Option<&SequenceNumber> {
        self.0.as_ref().map(|failure| &failure.item_identifier)
    }
}

impl Response {
    pub(super) fn failures(&self) -> &[ItemFailure] {
        self.0.as_slice()
    }
}

impl Serialize for Response {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut response = serializer.serialize_struct("Response", 1)?;
        response.serialize_field("batchItemFailures", self.failures())?;
        response.end()
    }
}
