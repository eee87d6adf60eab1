//! Puts records into a stream and reads them back, without redrive.

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{PutRecordsRequestEntry, ShardIteratorType};
use redrive::{Record, SequenceNumber, ShardId};

/// The place of a record: its shard and sequence number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    pub shard: ShardId,
    pub number: SequenceNumber,
}

impl Place {
    pub fn of(record: &Record) -> Self {
        Place {
            shard: record.shard().clone(),
            number: record.sequence_number().clone(),
        }
    }
}

/// A record as it is in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub place: Place,
    pub key: String,
    pub data: Vec<u8>,
}

impl Sent {
    /// Builds the record as redrive sees it, without its payload, for comparison with a checkpoint.
    pub fn record(&self) -> Record {
        let Place { shard, number } = self.place.clone();
        Record::builder("orders", shard, number)
            .partition_key(self.key.clone())
            .build()
    }
}

/// The maximum number of entries per request, which is Kinesis' own limit. The limit in bytes is lower than
/// Kinesis', because the embedded server takes 2 MB including base64.
const MAX_ENTRIES: usize = 500;
const MAX_BYTES: usize = 1024 * 1024;

/// Puts records, one request after the other.
pub async fn put<K, D>(client: &Client, stream: &str, records: impl IntoIterator<Item = (K, D)>)
where
    K: Into<String>,
    D: Into<Vec<u8>>,
{
    let mut entries = Vec::new();
    let mut bytes = 0;
    for (key, data) in records {
        let data = data.into();
        if entries.len() == MAX_ENTRIES || (bytes + data.len() > MAX_BYTES && !entries.is_empty()) {
            request(client, stream, std::mem::take(&mut entries)).await;
            bytes = 0;
        }
        bytes += data.len();
        let entry = PutRecordsRequestEntry::builder().partition_key(key);
        entries.push(entry.data(Blob::new(data)).build().expect("a key and data"));
    }
    if !entries.is_empty() {
        request(client, stream, entries).await;
    }
}

async fn request(client: &Client, stream: &str, entries: Vec<PutRecordsRequestEntry>) {
    let call = client.put_records().stream_name(stream);
    let reply = call.set_records(Some(entries)).send().await.expect("PutRecords");
    for entry in reply.records() {
        assert_eq!(entry.error_code(), None, "{:?}", entry.error_message());
    }
}

/// Returns every record of the stream, shard by shard in the order of their names. Children have higher names
/// than their parents, so the records of a key are in order.
pub async fn read(client: &Client, stream: &str) -> Vec<Sent> {
    let mut records = Vec::new();
    for shard in shards(client, stream).await {
        records.extend(read_shard(client, stream, &shard).await);
    }
    records
}

/// Returns the names of the stream's shards, sorted.
pub async fn shards(client: &Client, stream: &str) -> Vec<ShardId> {
    let reply = client.list_shards().stream_name(stream).send().await;
    let reply = reply.expect("ListShards");
    let mut shards: Vec<ShardId> = reply
        .shards()
        .iter()
        .map(|shard| shard.shard_id().into())
        .collect();
    shards.sort();
    shards
}

async fn read_shard(client: &Client, stream: &str, shard: &ShardId) -> Vec<Sent> {
    let start = client
        .get_shard_iterator()
        .stream_name(stream)
        .shard_id(shard.as_str())
        .shard_iterator_type(ShardIteratorType::TrimHorizon)
        .send()
        .await
        .expect("GetShardIterator");
    let mut records = Vec::new();
    let mut iterator = start.shard_iterator;
    while let Some(token) = iterator {
        let page = client.get_records().shard_iterator(token).send().await;
        let page = page.expect("GetRecords");
        // A page with records at the tip does not show that the next page is empty.
        let at_tip = page.records.is_empty() && page.millis_behind_latest == Some(0);
        for record in page.records {
            records.push(Sent {
                place: Place {
                    shard: shard.clone(),
                    number: record.sequence_number.try_into().expect("a sequence number"),
                },
                key: record.partition_key.unwrap_or_default(),
                data: record.data.into_inner(),
            });
        }
        iterator = page.next_shard_iterator.filter(|_| !at_tip);
    }
    records
}
