//! What a stream holds.

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::types::{Record, ShardIteratorType};

/// All records, shard by shard, each shard from its oldest record.
pub async fn read_stream(client: &Client, name: &str) -> Vec<Record> {
    let shards = client.list_shards().stream_name(name).send().await;
    let shards = shards.expect("the stream is there").shards.unwrap_or_default();
    let mut records = Vec::new();
    for shard in shards {
        let iterator = client
            .get_shard_iterator()
            .stream_name(name)
            .shard_id(shard.shard_id)
            .shard_iterator_type(ShardIteratorType::TrimHorizon)
            .send()
            .await
            .expect("the shard is there");
        let mut iterator = iterator.shard_iterator;
        while let Some(from) = iterator {
            let page = client.get_records().shard_iterator(from).send().await;
            let page = page.expect("the iterator is fresh");
            iterator = page.next_shard_iterator.filter(|_| !page.records.is_empty());
            records.extend(page.records);
        }
    }
    records
}
