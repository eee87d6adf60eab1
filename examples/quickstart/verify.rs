//! Verifies the outcome of every record of the stream, independently of the consumer.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::types::ShardIteratorType;
use redrive::dead_letter::{self, DeadLetter};

use crate::orders::Billing;

/// A record's shard and sequence number.
type Place = (String, String);

/// The outcome of the stream's records.
pub struct Found {
    processed: usize,
    duplicates: usize,
    dead_lettered: usize,
    lost: usize,
    out_of_order: usize,
    sample: Option<DeadLetter>,
}

/// Reads the whole stream and compares it with the billed records and the dead-letter file.
pub async fn settled(
    client: &Client,
    stream: &str,
    billing: &Billing,
    letters: &Path,
) -> anyhow::Result<Found> {
    let mut times_billed: HashMap<Place, usize> = HashMap::new();
    let mut order: Vec<Place> = Vec::new();
    for billed in billing.billed() {
        let place = (billed.shard, billed.sequence_number);
        *times_billed.entry(place.clone()).or_default() += 1;
        order.push(place);
    }
    let letters = dead_letter::File::read(letters).collect::<Result<Vec<_>, _>>()?;
    let dead: HashSet<Place> = letters
        .iter()
        .map(|letter| (letter.shard.to_string(), letter.sequence_number.to_string()))
        .collect();

    let mut found = Found {
        processed: 0,
        duplicates: 0,
        dead_lettered: 0,
        lost: 0,
        out_of_order: 0,
        sample: letters.into_iter().next(),
    };
    // The partition key of each record, and the record's rank among the records of this key.
    let mut places: HashMap<Place, (String, usize)> = HashMap::new();
    let mut keys: HashMap<String, usize> = HashMap::new();
    for (place, key) in read(client, stream).await? {
        match times_billed.get(&place) {
            Some(times) => {
                found.processed += 1;
                found.duplicates += times - 1;
            }
            None if dead.contains(&place) => found.dead_lettered += 1,
            None => found.lost += 1,
        }
        let rank = keys.entry(key.clone()).or_default();
        *rank += 1;
        places.insert(place, (key, *rank));
    }
    let mut last: HashMap<&str, usize> = HashMap::new();
    for (key, rank) in order.iter().filter_map(|place| places.get(place)) {
        let last = last.entry(key).or_default();
        if rank < last {
            found.out_of_order += 1;
        }
        *last = *rank;
    }
    Ok(found)
}

/// Reads every record of the stream, shard by shard, and returns its place and its partition key.
async fn read(client: &Client, stream: &str) -> anyhow::Result<Vec<(Place, String)>> {
    let mut records = Vec::new();
    let shards = client.list_shards().stream_name(stream).send().await?;
    for shard in shards.shards() {
        let start = client
            .get_shard_iterator()
            .stream_name(stream)
            .shard_id(shard.shard_id())
            .shard_iterator_type(ShardIteratorType::TrimHorizon)
            .send()
            .await?;
        let mut iterator = start.shard_iterator;
        while let Some(token) = iterator {
            let page = client.get_records().shard_iterator(token).send().await?;
            for record in &page.records {
                let place = (shard.shard_id().to_owned(), record.sequence_number().to_owned());
                records.push((place, record.partition_key().unwrap_or_default().to_owned()));
            }
            let at_tip = page.records.is_empty() && page.millis_behind_latest == Some(0);
            iterator = page.next_shard_iterator.filter(|_| !at_tip);
        }
    }
    Ok(records)
}

impl Found {
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.out_of_order == 0
    }

    pub fn print(&self) {
        if let Some(letter) = &self.sample {
            println!("one of the dead letters:");
            println!("{}", serde_json::to_string_pretty(letter).unwrap_or_default());
            println!("  payload: {}", String::from_utf8_lossy(&letter.payload));
            println!();
        }
        match self.out_of_order {
            0 => println!("order within each partition key: kept"),
            count => println!("order within each partition key: BROKEN, {count} times"),
        }
        println!(
            "settled {}: processed {}, duplicate {}, dead-lettered {}; lost {}",
            self.processed + self.dead_lettered,
            self.processed,
            self.duplicates,
            self.dead_lettered,
            self.lost
        );
    }
}
