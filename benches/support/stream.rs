//! Fills a stream with small records.

use std::error::Error;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use tokio::task::JoinSet;

const KEYS: u64 = 1_000;
pub const PAYLOAD_BYTES: usize = 200;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Puts `records` records with `KEYS` partition keys into the stream.
pub async fn fill(client: &Client, stream: &str, records: u64) -> Result<()> {
    let mut calls = JoinSet::new();
    for first in (0..records).step_by(500) {
        let entries = (first..records.min(first + 500)).map(|number| {
            PutRecordsRequestEntry::builder()
                .partition_key(format!("customer-{:06}", number % KEYS))
                .data(Blob::new(vec![b'x'; PAYLOAD_BYTES]))
                .build()
        });
        let entries = entries.collect::<std::result::Result<Vec<_>, _>>()?;
        let call = client
            .put_records()
            .stream_name(stream)
            .set_records(Some(entries));
        if calls.len() >= 4
            && let Some(done) = calls.join_next().await
        {
            assert_eq!(done??, Some(0));
        }
        calls.spawn(async move { call.send().await.map(|reply| reply.failed_record_count) });
    }
    while let Some(done) = calls.join_next().await {
        assert_eq!(done??, Some(0));
    }
    Ok(())
}
