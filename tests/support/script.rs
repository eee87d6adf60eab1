//! Records for a scripted processor, and the order of its calls.

use redrive::Record;
use redrive::testing::Script;

/// Creates a record of stream `orders`, shard `shardId-0`.
pub fn record(number: u64, key: &str, script: &str) -> Record {
    Record::builder("orders", "shardId-0".into(), number.into())
        .partition_key(key)
        .payload(script.to_owned())
        .build()
}

/// Returns the sequence numbers in the order of their first calls.
pub fn first_calls(script: &Script) -> Vec<u64> {
    let calls = script.calls();
    let first = calls.iter().filter(|call| call.attempt == 1);
    first
        .map(|call| call.sequence_number.as_str().parse().expect("a small number"))
        .collect()
}
