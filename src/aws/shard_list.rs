//! The shards of a stream, from every page of ListShards.

use std::collections::HashSet;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::types::Shard;

use crate::aws::Located;
use crate::failure::BoxError;
use crate::record::StreamId;
use crate::sabotage::Sabotage;

/// Counts the answers of GetRecords that claim the end of a shard, with no record in between. Kinesis names
/// the child shards at the end of a shard. Emulators of Kinesis may not name them: there the proof is several
/// such answers, and a listing that shows the shard as closed.
#[derive(Debug, Default)]
pub(crate) struct EndAnswers(u32);

impl EndAnswers {
    /// The number of answers that are a proof.
    const ENOUGH: u32 = 3;

    /// Counts an answer. `is_complete`: the answer has no records, and states how far behind the tip it is.
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

/// The reason why an answer is not a valid listing. The next answer may be one.
#[derive(Debug, thiserror::Error)]
enum ListError {
    /// No page lists a shard. A stream that is being created has no shards yet; every other stream has.
    #[error("ListShards returned no shards")]
    Empty,
    /// A page names a next page that was already read, so the listing has no last page.
    #[error("ListShards returned the same page token twice")]
    Repeated,
}

/// Lists the shards of a stream, each once, sorted by name: a child's name sorts after its parents' names.
///
/// # Errors
///
/// Returns an error if a call fails, the stream has no shards, or the listing has no last page.
pub(crate) async fn list_shards(client: &Located<Client>, stream: &StreamId) -> Result<Vec<Shard>, BoxError> {
    let (name, arn) = stream.name_or_arn();
    let mut shards: Vec<Shard> = Vec::new();
    let mut known: HashSet<String> = HashSet::new();
    let mut tokens: HashSet<String> = HashSet::new();
    let mut next: Option<String> = None;
    loop {
        let call = client.list_shards();
        let call = match &next {
            // The token identifies the stream.
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

/// Returns true if the listing shows that a shard takes records.
pub(crate) fn is_open(shard: &Shard) -> bool {
    let numbers = shard.sequence_number_range();
    numbers.is_some_and(|numbers| numbers.ending_sequence_number().is_none())
}

/// Returns the names of a shard's parents.
pub(crate) fn parents(shard: &Shard) -> impl Iterator<Item = &str> {
    let parents = [shard.parent_shard_id(), shard.adjacent_parent_shard_id()];
    parents.into_iter().flatten()
}

/// Returns true if the listing shows that a shard takes no more records.
pub(crate) fn is_closed(shard: &Shard) -> bool {
    let numbers = shard.sequence_number_range();
    numbers.is_some_and(|numbers| numbers.ending_sequence_number().is_some())
}
