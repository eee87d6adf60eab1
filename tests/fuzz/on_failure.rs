//! Checks that any text is an on-failure message of Lambda, or an error.
//!
//! Run it with `cargo fuzz run --fuzz-dir tests/fuzz on_failure`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use redrive::replay::OnFailure;

fuzz_target!(|bytes: &[u8]| {
    // Try the input as a whole message, as the content of the batch information, and as the event.
    let within = |before: &str, after: &str| [before.as_bytes(), bytes, after.as_bytes()].concat();
    let event = serde_json::to_string(&String::from_utf8_lossy(bytes)).expect("a text");
    let with_event = format!(r#"{{"KinesisBatchInfo":{{}},"payload":{event}}}"#);
    for message in [
        bytes.to_vec(),
        within(r#"{"KinesisBatchInfo":{"#, "}}"),
        within(r#"{"KinesisBatchInfo":{},"#, "}"),
        with_event.into_bytes(),
    ] {
        if let Ok(message) = OnFailure::parse(&message) {
            let _ = message.function();
            for record in message.records().into_iter().flatten().flatten() {
                assert!(!record.stream().is_empty() && !record.shard().as_str().is_empty());
            }
        }
    }
});
