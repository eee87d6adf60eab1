//! The encoding in which the tests read records.

use base64::Engine as _;
use ciborium::value::Value as Cbor;
use redrive::consumer::Wire;
use serde_json::{Value, json};

/// The environment variable that names the encoding of all tests: `json` or `cbor`.
const WIRE: &str = "REDRIVE_TEST_WIRE";

/// Returns the encoding in which this test reads records. Without the variable about half of the tests read CBOR, by
/// their names, and the others JSON.
pub fn wire() -> Wire {
    match std::env::var(WIRE).as_deref() {
        Ok("json") => Wire::Json,
        Ok("cbor") => Wire::Cbor,
        Ok(other) => panic!("{WIRE} is {other:?}; set it to json or cbor"),
        Err(_) => {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or_default();
            match name.bytes().map(u32::from).sum::<u32>() % 2 {
                0 => Wire::Json,
                _ => Wire::Cbor,
            }
        }
    }
}

/// Returns a body in JSON or CBOR as JSON, in which bytes are base64 text. Returns null for any other body.
pub fn to_json(body: &[u8]) -> Value {
    match body.first() {
        // As CBOR this would begin a text, and no body is one.
        Some(b'{') => serde_json::from_slice(body).unwrap_or_default(),
        _ => ciborium::from_reader(body).map_or(Value::Null, from_cbor),
    }
}

fn from_cbor(value: Cbor) -> Value {
    match value {
        Cbor::Text(text) => text.into(),
        Cbor::Bytes(bytes) => base64::engine::general_purpose::STANDARD.encode(bytes).into(),
        Cbor::Integer(integer) => i64::try_from(integer).map_or(Value::Null, Value::from),
        Cbor::Float(float) => json!(float),
        Cbor::Bool(flag) => flag.into(),
        Cbor::Tag(_, inner) => from_cbor(*inner),
        Cbor::Array(items) => items.into_iter().map(from_cbor).collect(),
        Cbor::Map(members) => {
            let members = members.into_iter().map(|(key, value)| {
                let key = key.into_text().expect("a text is the key of each member");
                (key, from_cbor(value))
            });
            Value::Object(members.collect())
        }
        _ => Value::Null,
    }
}
