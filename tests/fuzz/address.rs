//! Checks that any text parses to an address that formats to the same address, or is an error.
//!
//! Run it with `cargo fuzz run --fuzz-dir tests/fuzz address`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../cli/src/address.rs"]
#[allow(dead_code)]
mod address;

use address::{Address, StoreAddress};

fuzz_target!(|text: &str| {
    match text.parse::<Address>() {
        Ok(address) => assert_eq!(address.to_string().parse(), Ok(address)),
        Err(error) => assert!(error.to_string().contains("write ")),
    }
    match text.parse::<StoreAddress>() {
        Ok(address) => assert_eq!(address.to_string().parse(), Ok(address)),
        Err(error) => assert!(error.to_string().contains("write ")),
    }
});
