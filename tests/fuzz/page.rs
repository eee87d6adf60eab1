//! Checks that a page of records is read as other readers read it, or is an error: JSON as by the SDK, CBOR as by a
//! general reader of CBOR. No record may be missing.
//!
//! Run it with `cargo fuzz run --fuzz-dir tests/fuzz page`.
#![no_main]

use aws_sdk_kinesis::operation::get_records::GetRecordsOutput;
use aws_smithy_json::protocol::aws_json_rpc::AwsJsonRpcProtocol;
use aws_smithy_schema::protocol::ClientProtocolInner;
use ciborium::Value;
use libfuzzer_sys::fuzz_target;
use redrive::Record;
use redrive::fuzzing::read_page;

fuzz_target!(|body: &[u8]| {
    let Some(records) = read_page(body) else { return };
    match body.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => same_as_sdk(body, &records),
        _ => same_as_ciborium(body, &records),
    }
});

fn same_as_sdk(body: &[u8], records: &[Record]) {
    let protocol = AwsJsonRpcProtocol::aws_json_1_1();
    let codec = protocol.payload_codec().expect("a codec");
    // The SDK may refuse what is no valid JSON, such as a control character in a text.
    let Ok(expected) = GetRecordsOutput::deserialize(&mut *codec.create_deserializer(body)) else {
        return;
    };
    assert_eq!(records.len(), expected.records.len(), "a record is missing");
    for (record, expected) in records.iter().zip(&expected.records) {
        assert_eq!(record.sequence_number().as_str(), expected.sequence_number);
        assert_eq!(&record.payload()[..], expected.data.as_ref());
        assert_eq!(record.partition_key(), expected.partition_key.as_deref());
    }
}

fn same_as_ciborium(body: &[u8], records: &[Record]) {
    // A reader of any CBOR refuses some values that no answer has.
    let Ok(value) = ciborium::from_reader::<Value, _>(body) else {
        return;
    };
    let expected = member(&value, "Records");
    let expected = expected.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    assert_eq!(records.len(), expected.len(), "a record is missing");
    for (record, expected) in records.iter().zip(expected) {
        let number = member(expected, "SequenceNumber").and_then(Value::as_text);
        assert_eq!(Some(record.sequence_number().as_str()), number);
        let key = member(expected, "PartitionKey").and_then(Value::as_text);
        assert_eq!(record.partition_key(), key);
        // Bytes may also be base64 text.
        if let Some(data) = member(expected, "Data").and_then(Value::as_bytes) {
            assert_eq!(&record.payload()[..], data);
        }
    }
}

/// Returns the member of a map that is not null.
fn member<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Tag(_, inner) => member(inner, name),
        Value::Map(members) => {
            let mut members = members.iter();
            let found = members.find(|(key, value)| untagged(key).as_text() == Some(name) && !value.is_null());
            found.map(|(_, value)| untagged(value))
        }
        _ => None,
    }
}

fn untagged(value: &Value) -> &Value {
    match value {
        Value::Tag(_, inner) => untagged(inner),
        value => value,
    }
}
