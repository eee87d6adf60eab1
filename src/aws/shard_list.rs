//! The shards of a stream, from every page of ListShards.

use std::collections::HashSet;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::types::Shard;

use crate::StreamId;
use crate::aws::Located;
use crate::failure::BoxError;
use crate::sabotage::Sabotage;

/// Counts the answers of GetRecords that are those of a shard's end, with no record in between. Kinesis names the child
/// shards at the end of a shard. Emulators of Kinesis may not: there several such answers, and a listing that has the shard
/// as closed, are the proof.
#[derive(Debug, Default)]
pub(crate) struct EndAnswers(u32);

impl EndAnswers {
    /// How many are a proof.
    const ENOUGH: u32 = 3;

    /// Notes an answer. `is_complete`: it has no records, and states how far behind the tip it is.
    pub(crate) fn note(&mut self, is_empty: bool, is_complete: bool, has_next_iterator: bool) {
        if !is_empty {
            self.0 = 0;
        } else if is_complete && !has_next_iterator {
            self.0 += 1;
        }
    }

    pub(crate) fn are_enough(&self) -> bool {
        self.0 >= Self::ENOUGH
    }
}

/// Why an answer is no list. The next may be one.
#[derive(Debug, thiserror::Error)]
enum ListError {
    /// No page lists a shard. A stream that is being created has none yet, and no other stream is without.
    #[error("ListShards returned no shards")]
    Empty,
    /// A page names a next page that was read already, so that there is no last one.
    #[error("ListShards returned the same page token twice")]
    Repeated,
}

/// Lists the shards of a stream, each once, in the order of their names: a child's name is higher than its parents'.
///
/// # Errors
///
/// A call fails, the stream has no shards, or there is no last page.
pub(crate) async fn list_shards(client: &Located<Client>, stream: &StreamId) -> Result<Vec<Shard>, BoxError> {
    let (name, arn) = stream.name_or_arn();
    let mut shards: Vec<Shard> = Vec::new();
    let mut known: HashSet<String> = HashSet::new();
    let mut tokens: HashSet<String> = HashSet::new();
    let mut next: Option<String> = None;
    loop {
        let call = client.list_shards();
        let call = match &next {
            // The token names the stream.
            Some(token) => call.next_token(token),
            None => call.set_stream_name(name.clone()).set_stream_arn(arn.clone()),
        };
        let page = call.send().await.map_err(|error| {
            let task = format!("list the shards of {:?}", stream.to_string());
            client.failed(task, "kinesis:ListShards", error)
        })?;
        for shard in page.shards.unwrap_or_default() {
            if known.insert(shard.shard_id.clone()) {
                shards.push(shard);
            }
        }
        next = page.next_token;
        match &next {
            Some(token) if !tokens.insert(token.clone()) => return Err(ListError::Repeated.into()),
            Some(_) => {}
            None if shards.is_empty() && !Sabotage::TrustEmptyListing.is_committed() => {
                return Err(ListError::Empty.into());
            }
            None => {
                shards.sort_by(|a, b| a.shard_id.cmp(&b.shard_id));
                return Ok(shards);
            }
        }
    }
}

/// Returns whether a shard takes records, as far as the listing says.
pub(crate) fn is_open(shard: &Shard) -> bool {
    let numbers = shard.sequence_number_range();
    numbers.is_some_and(|numbers| numbers.ending_sequence_number().is_none())
}

/// Returns the shards that a shard came of.
pub(crate) fn parents(shard: &Shard) -> impl Iterator<Item = &str> {
    let parents = [shard.parent_shard_id(), shard.adjacent_parent_shard_id()];
    parents.into_iter().flatten()
}

/// Returns whether a shard takes no more records.
pub(crate) fn is_closed(shard: &Shard) -> bool {
    let numbers = shard.sequence_number_range();
    numbers.is_some_and(|numbers| numbers.ending_sequence_number().is_some())
}
