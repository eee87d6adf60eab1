//! Which shards came of which, and which may be read.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

use aws_sdk_kinesis::types::Shard;

use crate::checkpoint::Checkpoint;
use crate::record::{Position, ShardId};

/// The shards of a stream as they were listed last, and what is stored of them.
pub(super) struct Lineage {
    pub(super) shards: Vec<Shard>,
    pub(super) checkpoints: HashMap<ShardId, Checkpoint>,
}

/// Hash keys that belong to no shard: whatever is written to them is read by nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hole {
    pub(super) first: u128,
    pub(super) last: u128,
}

impl Lineage {
    /// The shards that may be read: not at their end, and no parent that the stream still has is short
    /// of its own. (A parent that the stream has no more was trimmed: nothing of it is left to read.)
    pub(super) fn ready(&self) -> Vec<ShardId> {
        let known: HashSet<&str> = self.shards.iter().map(Shard::shard_id).collect();
        let open = |parent: Option<&str>| {
            parent.is_some_and(|parent| known.contains(parent) && !self.has_ended(parent))
        };
        self.unfinished()
            .filter(|shard| !open(shard.parent_shard_id()) && !open(shard.adjacent_parent_shard_id()))
            .map(|shard| shard.shard_id().into())
            .collect()
    }

    /// The first hash keys that no unfinished shard holds. After a shard's end it may only be that the
    /// listing does not have its children yet.
    pub(super) fn hole(&self) -> Option<Hole> {
        self.shards.first().and_then(hash_keys)?;
        let mut ranges: Vec<(u128, u128)> = self.unfinished().map(hash_keys).collect::<Option<_>>()?;
        ranges.sort_unstable();
        // The first key that is not known to be held.
        let mut next = 0;
        for (first, last) in ranges {
            if first > next {
                return Some(Hole {
                    first: next,
                    last: first - 1,
                });
            }
            next = next.max(last.checked_add(1)?);
        }
        Some(Hole {
            first: next,
            last: u128::MAX,
        })
    }

    /// The hash keys of a shard; all, where they are not told.
    pub(super) fn hash_keys(&self, shard: &ShardId) -> RangeInclusive<u128> {
        let listed = self
            .shards
            .iter()
            .find(|listed| listed.shard_id() == shard.as_str());
        let (first, last) = listed.and_then(hash_keys).unwrap_or((0, u128::MAX));
        first..=last
    }

    fn unfinished(&self) -> impl Iterator<Item = &Shard> {
        self.shards
            .iter()
            .filter(|shard| !self.has_ended(shard.shard_id()))
    }

    fn has_ended(&self, shard: &str) -> bool {
        let stored = self.checkpoints.get(&ShardId::from(shard));
        stored.is_some_and(|checkpoint| *checkpoint.position() == Position::ShardEnd)
    }
}

/// The first and the last; `None` if they are not told.
fn hash_keys(shard: &Shard) -> Option<(u128, u128)> {
    let range = shard.hash_key_range()?;
    Some((
        range.starting_hash_key().parse().ok()?,
        range.ending_hash_key().parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use aws_sdk_kinesis::types::HashKeyRange;

    use super::*;

    const LAST: u128 = u128::MAX;

    fn shard(name: &str, parents: &[&str], keys: (u128, u128)) -> Shard {
        let range = HashKeyRange::builder().starting_hash_key(keys.0.to_string());
        let range = range
            .ending_hash_key(keys.1.to_string())
            .build()
            .expect("both ends");
        Shard::builder()
            .shard_id(name)
            .set_parent_shard_id(parents.first().map(|&parent| parent.to_owned()))
            .set_adjacent_parent_shard_id(parents.get(1).map(|&parent| parent.to_owned()))
            .hash_key_range(range)
            .sequence_number_range(
                aws_sdk_kinesis::types::SequenceNumberRange::builder()
                    .starting_sequence_number("1")
                    .build()
                    .expect("a start"),
            )
            .build()
            .expect("complete")
    }

    fn lineage(shards: Vec<Shard>, ended: &[&str]) -> Lineage {
        let ended = ended
            .iter()
            .map(|&name| (name.into(), Checkpoint::at(Position::ShardEnd)));
        Lineage {
            shards,
            checkpoints: ended.collect(),
        }
    }

    fn ready(lineage: &Lineage) -> Vec<String> {
        lineage.ready().into_iter().map(String::from).collect()
    }

    /// a and b are merged into c, which is split into d and e.
    fn merged_and_split() -> Vec<Shard> {
        vec![
            shard("a", &[], (0, 99)),
            shard("b", &[], (100, LAST)),
            shard("c", &["a", "b"], (0, LAST)),
            shard("d", &["c"], (0, 7)),
            shard("e", &["c"], (8, LAST)),
        ]
    }

    #[test]
    fn children_wait_for_all_their_parents() {
        let ready_once = |ended: &[&str]| ready(&lineage(merged_and_split(), ended));
        assert_eq!(ready_once(&[]), ["a", "b"]);
        assert_eq!(ready_once(&["a"]), ["b"]);
        assert_eq!(ready_once(&["b"]), ["a"]);
        assert_eq!(ready_once(&["a", "b"]), ["c"]);
        assert_eq!(ready_once(&["a", "b", "c"]), ["d", "e"]);
    }

    #[test]
    fn a_parent_that_was_trimmed_is_not_waited_for() {
        let rest = merged_and_split().split_off(2);
        assert_eq!(ready(&lineage(rest, &[])), ["c"]);
    }

    #[test]
    fn hash_keys_that_no_unfinished_shard_holds_are_a_hole() {
        let hole = |shards: Vec<Shard>, ended: &[&str]| {
            let hole = lineage(shards, ended).hole()?;
            Some((hole.first, hole.last))
        };
        for ended in [&[] as &[&str], &["a"], &["a", "b"], &["a", "b", "c"]] {
            assert_eq!(hole(merged_and_split(), ended), None, "{ended:?}");
        }
        let children_unknown = merged_and_split()[..3].to_vec();
        assert_eq!(hole(children_unknown, &["a", "b", "c"]), Some((0, LAST)));
        let one_unknown = merged_and_split()[..4].to_vec();
        assert_eq!(hole(one_unknown, &["a", "b", "c"]), Some((8, LAST)));
        let gap = vec![shard("a", &[], (5, 99)), shard("b", &[], (101, LAST))];
        assert_eq!(hole(gap.clone(), &[]), Some((0, 4)));
        let gap = [vec![shard("c", &[], (0, 50))], gap].concat();
        assert_eq!(hole(gap, &[]), Some((100, 100)));
    }
}
