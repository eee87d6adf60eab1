//! Checks that any bytes are a dead letter that reads back unchanged, or an error.
//!
//! Run it with `cargo fuzz run --fuzz-dir tests/fuzz letter`.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use redrive::dead_letter::DeadLetter;

fuzz_target!(|bytes: &[u8]| {
    // A fuzzer is slow to find the start of the JSON form of a dead letter.
    const HEAD: &[u8] = br#"{"kind":"redrive.dead_letter","schema_version":1,"#;
    let whole = [HEAD, bytes].concat();
    for bytes in [bytes, &whole] {
        let line = DeadLetter::from_json_line(bytes);
        let either = DeadLetter::decode(&Bytes::copy_from_slice(bytes));
        for letter in [line, either].into_iter().flatten() {
            let again =
                DeadLetter::decode(&letter.encode()).expect("a dead letter that was read can be written");
            assert_eq!(again, letter);
            let again =
                DeadLetter::from_json_line(&letter.to_json_line()).expect("a dead letter as a JSON line");
            assert_eq!(again, letter);
        }
    }
});
