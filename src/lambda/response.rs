//! The answer of a function to a batch.

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

use crate::record::SequenceNumber;

/// The first record of a batch that Lambda must send again, if any:
/// `{"batchItemFailures":[{"itemIdentifier":"…"}]}`.
///
/// Lambda sends everything again from the lowest sequence number on, so a response contains at most one.
/// Lambda treats an empty, missing or unknown identifier as a failure of the whole batch; such a response
/// cannot be created.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Response(Option<ItemFailure>);

/// A record that Lambda must send again, together with all records after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ItemFailure {
    /// The record's sequence number. For a record inside an aggregated record, that of the aggregated record.
    pub item_identifier: SequenceNumber,
}

impl Response {
    /// Creates the response to a batch that is completely settled.
    pub fn settled() -> Self {
        Response(None)
    }

    /// Creates a response that asks for this record and all records after it again.
    pub fn again_from(sequence_number: SequenceNumber) -> Self {
        Response(Some(ItemFailure {
            item_identifier: sequence_number,
        }))
    }

    /// Returns the first record that Lambda must send again.
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
