//! Checks that the columns that redrive adds to a lease row read back as written, or are an error.
//!
//! Run it with `cargo fuzz run --fuzz-dir tests/fuzz lease_row`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use redrive::checkpoint::{CrashCount, SettledAhead};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(ahead) = SettledAhead::from_bytes(bytes) {
        let again =
            SettledAhead::from_bytes(&ahead.to_bytes()).expect("a value that was read can be written");
        assert_eq!(again, ahead);
    }
    if let Ok(starts) = std::str::from_utf8(bytes)
        .unwrap_or_default()
        .parse::<CrashCount>()
    {
        assert_eq!(
            starts
                .to_string()
                .parse::<CrashCount>()
                .expect("the text reads back"),
            starts
        );
    }
});
