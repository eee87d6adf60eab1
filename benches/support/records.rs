//! Records as in a shard, made before the measurement.

use std::time::SystemTime;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use redrive::{Record, StreamId};

const PAYLOAD_BYTES: usize = 200;

/// Returns a single record.
pub fn one() -> Record {
    batches(1, 1, 1).remove(0).remove(0)
}

/// Returns `records` records in batches. The partition key of each record is one of `keys` keys, chosen at
/// random with a fixed seed. The first 8 bytes of a payload are random too.
pub fn batches(records: usize, keys: u64, batch: usize) -> Vec<Vec<Record>> {
    let mut rng = SmallRng::seed_from_u64(1);
    // The records of a consumer share the name of their stream.
    let stream = StreamId::from("orders");
    let numbers: Vec<usize> = (0..records).collect();
    numbers
        .chunks(batch)
        .map(|numbers| {
            numbers
                .iter()
                .map(|number| record(&stream, *number, keys, &mut rng))
                .collect()
        })
        .collect()
}

fn record(stream: &StreamId, number: usize, keys: u64, rng: &mut SmallRng) -> Record {
    let key = rng.random_range(0..keys);
    let mut payload = vec![b'x'; PAYLOAD_BYTES];
    rng.fill(&mut payload[..8]);
    // A sequence number of 56 digits, as in Kinesis.
    let sequence_number = format!("4959033827149025660855969253836157109592157{number:013}");
    Record::builder(
        stream.clone(),
        "shardId-000000000000".into(),
        sequence_number.parse().expect("digits"),
    )
    .partition_key(format!("customer-{key:06}"))
    .arrival(SystemTime::now())
    .payload(payload)
    .build()
}
