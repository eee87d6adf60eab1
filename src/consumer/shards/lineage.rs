//! The parents and children of shards, and which shards may be read.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::time::SystemTime;

use aws_sdk_kinesis::types::Shard;

use crate::aws::shard_list::{is_open, parents};
use crate::checkpoint::{Checkpoint, CheckpointError, NewShard, ShardKey};
use crate::failure::BoxError;
use crate::record::{Position, ShardId};
use crate::sabotage::Sabotage;

/// The shards of a stream in the last listing, and their checkpoints.
pub(in crate::consumer) struct Lineage {
    pub(in crate::consumer) shards: Vec<Shard>,
    pub(in crate::consumer) checkpoints: HashMap<ShardId, Checkpoint>,
    /// Shards whose checkpoints cannot be read. They have been started, and their progress is unknown.
    pub(in crate::consumer) unreadable: HashSet<ShardId>,
    /// The old checkpoints of shards whose rows belong to an earlier stream of this name. These shards are
    /// read from their oldest record.
    pub(in crate::consumer) outdated: HashMap<ShardId, Checkpoint>,
    /// Parents that are neither listed nor known by a row, and that Kinesis has or may have: the listing is
    /// incomplete.
    pub(in crate::consumer) hidden: HashMap<ShardId, BoxError>,
    /// The error of one of the unreadable rows, if that row was written for another stream.
    pub(in crate::consumer) of_other_stream: Option<CheckpointError>,
}

/// A range of hash keys that belongs to no shard: records written to it are not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::consumer) struct Hole {
    pub(in crate::consumer) first: u128,
    pub(in crate::consumer) last: u128,
}

impl Lineage {
    /// Creates the lineage of a listing, without checkpoints.
    pub(in crate::consumer) fn new(shards: Vec<Shard>) -> Self {
        Lineage {
            shards,
            checkpoints: HashMap::new(),
            unreadable: HashSet::new(),
            outdated: HashMap::new(),
            hidden: HashMap::new(),
            of_other_stream: None,
        }
    }

    /// Returns the shards that may be read: they have not ended, all their parents have, and their
    /// checkpoints are readable.
    pub(in crate::consumer) fn ready(&self) -> Vec<ShardId> {
        let listed = listed(&self.shards);
        self.unfinished()
            .filter(|shard| !has_open_parent(shard, &listed, &self.checkpoints, &self.hidden))
            .map(|shard| shard.shard_id().into())
            .filter(|shard| !self.unreadable.contains(shard))
            .collect()
    }

    /// Moves the rows of listed shards that belong to an earlier stream of this name to `outdated`.
    pub(in crate::consumer) fn set_aside(&mut self, is_outdated: impl Fn(&Checkpoint) -> bool) {
        let listed = listed(&self.shards);
        for (shard, checkpoint) in &mut self.checkpoints {
            if listed.contains(shard.as_str()) && is_outdated(checkpoint) {
                let row = std::mem::replace(checkpoint, Checkpoint::at(Position::TrimHorizon));
                self.outdated.insert(shard.clone(), row);
            }
        }
    }

    /// Moves the rows of these shards to `outdated` if the rows say that the shards have ended.
    pub(in crate::consumer) fn set_aside_ends(&mut self, shards: &HashSet<ShardId>) {
        for shard in shards {
            if has_ended(shard.as_str(), &self.checkpoints) {
                let beginning = Checkpoint::at(Position::TrimHorizon);
                if let Some(row) = self.checkpoints.insert(shard.clone(), beginning) {
                    self.outdated.insert(shard.clone(), row);
                }
            }
        }
    }

    /// Returns the open shards whose rows say that they have ended.
    pub(in crate::consumer) fn ended_and_open(&self) -> Vec<ShardId> {
        let open = self.shards.iter().filter(|shard| is_open(shard));
        let ended = open.filter(|shard| has_ended(shard.shard_id(), &self.checkpoints));
        ended.map(|shard| shard.shard_id().into()).collect()
    }

    /// Returns the first hash keys that no unfinished shard covers. After a shard's end, the listing may
    /// merely lack its children.
    pub(in crate::consumer) fn hole(&self) -> Option<Hole> {
        self.shards.first().and_then(hash_keys)?;
        let ranges = self.unfinished().map(hash_keys).collect::<Option<_>>()?;
        first_gap(ranges, 0..=u128::MAX)
    }

    /// Returns the hash keys of a shard, or all hash keys if the listing does not state them.
    pub(in crate::consumer) fn hash_keys(&self, shard: &ShardId) -> RangeInclusive<u128> {
        let listed = self
            .shards
            .iter()
            .find(|listed| listed.shard_id() == shard.as_str());
        let (first, last) = listed.and_then(hash_keys).unwrap_or((0, u128::MAX));
        first..=last
    }

    /// Marks shards as ended whose rows were deleted. KCL, which may share the rows, deletes the row of a
    /// finished shard once its children are being read.
    ///
    /// A shard without a row is finished if one of its descendants has a row: rows of children are created at
    /// the end of a parent. Its own parents must be finished too. Otherwise its row may still be created.
    pub(in crate::consumer) fn finish_deleted(&mut self) {
        let Lineage {
            shards,
            checkpoints,
            unreadable,
            outdated,
            hidden,
            ..
        } = self;
        let parents: HashMap<&str, Vec<&str>> = shards
            .iter()
            .map(|shard| (shard.shard_id(), parents(shard).collect()))
            .collect();
        let mut forebears: HashSet<&str> = HashSet::new();
        let has_row = |shard: &ShardId| {
            !outdated.contains_key(shard) && (checkpoints.contains_key(shard) || unreadable.contains(shard))
        };
        let with_row = |shard: &&Shard| has_row(&shard.shard_id().into());
        let mut descendants: Vec<&str> = shards.iter().filter(with_row).map(Shard::shard_id).collect();
        while let Some(shard) = descendants.pop() {
            let parents = parents.get(shard).into_iter().flatten().copied();
            descendants.extend(parents.filter(|parent| forebears.insert(parent)));
        }
        let listed = listed(shards);
        for shard in parents_first(shards) {
            let name = ShardId::from(shard.shard_id());
            let has_row = checkpoints.contains_key(&name) || unreadable.contains(&name);
            let unknown = forebears.contains(shard.shard_id()) && !has_row;
            if unknown && !has_open_parent(shard, &listed, checkpoints, hidden) {
                checkpoints.insert(name, Checkpoint::at(Position::ShardEnd));
            }
        }
    }

    /// Returns the shards that are not settled to their end, according to their rows, and that are not
    /// listed.
    pub(in crate::consumer) fn unlisted(&self) -> Vec<ShardId> {
        let listed = listed(&self.shards);
        let open = self.checkpoints.iter().filter(|(shard, checkpoint)| {
            *checkpoint.position() != Position::ShardEnd && !listed.contains(shard.as_str())
        });
        let mut open: Vec<ShardId> = open.map(|(shard, _)| shard.clone()).collect();
        open.sort();
        open
    }

    /// Returns the parents of listed shards that are neither listed nor known by a row. Each was trimmed,
    /// unless the listing is incomplete.
    pub(in crate::consumer) fn unknown_parents(&self) -> HashSet<ShardId> {
        let listed = listed(&self.shards);
        let parents = self.shards.iter().flat_map(parents);
        let unlisted = parents.filter(|parent| !listed.contains(parent));
        let unlisted = unlisted.map(ShardId::from);
        unlisted.filter(|parent| !self.has_row(parent)).collect()
    }

    /// Returns whether the listed children of a shard cover all of its hash keys. If not, the listing lacks a
    /// child.
    pub(in crate::consumer) fn has_all_children(&self, of: &ShardId) -> bool {
        let children = self.children(of);
        let Some(ranges) = children.iter().map(|child| hash_keys(child)).collect() else {
            return true;
        };
        let keys = self.hash_keys(of);
        !children.is_empty() && first_gap(ranges, keys).is_none()
    }

    /// Returns the time up to which the parents of a shard were read. The shard's own records arrived later,
    /// as all its parents were closed when it was opened. The time may be unknown for parents without
    /// records.
    pub(in crate::consumer) fn parents_read_until(&self, shard: &ShardId) -> Option<SystemTime> {
        let listed = self.shards.iter().find(|it| it.shard_id() == shard.as_str())?;
        let rows = parents(listed).filter_map(|parent| self.checkpoints.get(&ShardId::from(parent)));
        rows.filter_map(Checkpoint::read_until).max()
    }

    /// Returns the children of this shard.
    pub(in crate::consumer) fn children(&self, of: &ShardId) -> Vec<&Shard> {
        let shards = self.shards.iter();
        shards
            .filter(|shard| parents(shard).any(|parent| parent == of.as_str()))
            .collect()
    }

    /// Returns whether the store has a row of the shard, readable or not.
    pub(in crate::consumer) fn has_row(&self, shard: &ShardId) -> bool {
        self.checkpoints.contains_key(shard) || self.unreadable.contains(shard)
    }

    /// Returns whether a child gets its row when this parent ends. If its other parent has no row yet, other
    /// readers of the rows would treat that parent as finished. In this case the end of the other parent
    /// creates the child's row.
    pub(in crate::consumer) fn may_begin_row(&self, child: &Shard, parent: &ShardId) -> bool {
        let listed = listed(&self.shards);
        let is_there = |other: &str| listed.contains(other) || self.hidden.contains_key(&other.into());
        let mut others = parents(child).filter(|other| *other != parent.as_str());
        !self.has_row(&child.shard_id().into())
            && others.all(|other| self.has_row(&other.into()) || !is_there(other))
    }

    /// Creates the description of a shard that gets a row.
    pub(in crate::consumer) fn new_shard(&self, key: ShardKey, checkpoint: Checkpoint) -> NewShard {
        let listed = self
            .shards
            .iter()
            .find(|shard| shard.shard_id() == key.shard.as_str());
        NewShard {
            parents: listed.into_iter().flat_map(parents).map(ShardId::from).collect(),
            hash_keys: listed.and_then(hash_keys).map(|(first, last)| first..=last),
            ..NewShard::new(key, checkpoint)
        }
    }

    fn unfinished(&self) -> impl Iterator<Item = &Shard> {
        self.shards
            .iter()
            .filter(|shard| !has_ended(shard.shard_id(), &self.checkpoints))
    }
}

/// Returns all shards, each after its parents.
pub(in crate::consumer) fn parents_first(shards: &[Shard]) -> Vec<&Shard> {
    let mut left: Vec<&Shard> = shards.iter().collect();
    let mut sorted = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let waiting: HashSet<&str> = left.iter().map(|shard| shard.shard_id()).collect();
        let (later, now): (Vec<_>, Vec<_>) = left
            .into_iter()
            .partition(|shard| parents(shard).any(|parent| waiting.contains(parent)));
        // The rest are parents of each other, which no valid listing contains.
        let stuck = now.is_empty();
        sorted.extend(now);
        left = if stuck { Vec::new() } else { later };
    }
    sorted
}

/// Returns true if the stream still has a parent that has not ended. (A parent that the stream does not have
/// any more was trimmed: no record of it is left.)
fn has_open_parent(
    shard: &Shard,
    listed: &HashSet<&str>,
    checkpoints: &HashMap<ShardId, Checkpoint>,
    hidden: &HashMap<ShardId, BoxError>,
) -> bool {
    if Sabotage::StartChildrenEarly.is_committed() {
        return false;
    }
    // A parent that has a row but is not listed is not known to be trimmed yet.
    let is_known = |parent: &str| {
        let name = ShardId::from(parent);
        listed.contains(parent) || checkpoints.contains_key(&name) || hidden.contains_key(&name)
    };
    parents(shard).any(|parent| is_known(parent) && !has_ended(parent, checkpoints))
}

fn has_ended(shard: &str, checkpoints: &HashMap<ShardId, Checkpoint>) -> bool {
    let stored = checkpoints.get(&ShardId::from(shard));
    stored.is_some_and(|checkpoint| *checkpoint.position() == Position::ShardEnd)
}

fn listed(shards: &[Shard]) -> HashSet<&str> {
    shards.iter().map(Shard::shard_id).collect()
}

/// Returns the first and the last hash key, or `None` if the listing does not state them.
fn hash_keys(shard: &Shard) -> Option<(u128, u128)> {
    let range = shard.hash_key_range()?;
    Some((
        range.starting_hash_key().parse().ok()?,
        range.ending_hash_key().parse().ok()?,
    ))
}

/// Returns the first of these hash keys that no range covers.
fn first_gap(mut ranges: Vec<(u128, u128)>, keys: RangeInclusive<u128>) -> Option<Hole> {
    ranges.sort_unstable();
    let (mut next, end) = keys.into_inner();
    for (first, last) in ranges {
        if first > next {
            return Some(Hole {
                first: next,
                last: end.min(first - 1),
            });
        }
        if last >= end {
            return None;
        }
        next = next.max(last + 1);
    }
    Some(Hole {
        first: next,
        last: end,
    })
}

#[cfg(test)]
pub(in crate::consumer) mod tests {
    use aws_sdk_kinesis::types::HashKeyRange;

    use super::*;

    const LAST: u128 = u128::MAX;

    pub(in crate::consumer) fn shard(name: &str, parents: &[&str], keys: (u128, u128)) -> Shard {
        let range = HashKeyRange::builder().starting_hash_key(keys.0.to_string());
        let range = range
            .ending_hash_key(keys.1.to_string())
            .build()
            .expect("a start and an end");
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

    pub(in crate::consumer) fn lineage(shards: Vec<Shard>, ended: &[&str]) -> Lineage {
        let ended = ended
            .iter()
            .map(|&name| (name.into(), Checkpoint::at(Position::ShardEnd)));
        Lineage {
            checkpoints: ended.collect(),
            ..Lineage::new(shards)
        }
    }

    fn ready(lineage: &Lineage) -> Vec<String> {
        lineage.ready().into_iter().map(String::from).collect()
    }

    /// Returns shards a and b, merged into c, which is split into d and e.
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
    fn a_parent_that_a_listing_lacks_is_waited_for() {
        let mut listed = merged_and_split();
        listed.remove(1);
        let mut lineage = lineage(listed, &["a"]);
        assert_eq!(lineage.unknown_parents(), HashSet::from(["b".into()]));
        lineage.hidden.insert("b".into(), "exists".into());
        let merged = lineage.children(&"a".into())[0].clone();
        assert!(!lineage.may_begin_row(&merged, &"a".into()));
        assert_eq!(ready(&lineage), [] as [&str; 0]);
        lineage.hidden.clear();
        assert!(lineage.may_begin_row(&merged, &"a".into()));
        assert_eq!(ready(&lineage), ["c"]);
    }

    #[test]
    fn children_that_hold_some_of_the_hash_keys_are_not_all() {
        let has_all = |names: &[&str]| {
            let mut shards = merged_and_split();
            shards.retain(|shard| names.contains(&shard.shard_id()));
            lineage(shards, &[]).has_all_children(&"c".into())
        };
        assert!(!has_all(&["c"]));
        assert!(!has_all(&["c", "d"]));
        assert!(!has_all(&["c", "e"]));
        assert!(has_all(&["c", "d", "e"]));
        let merged = lineage(merged_and_split(), &[]);
        assert!(merged.has_all_children(&"a".into()) && merged.has_all_children(&"b".into()));
    }

    #[test]
    fn shards_stand_behind_those_that_they_came_of() {
        let mut shards = merged_and_split();
        shards.reverse();
        let lineage = lineage(shards, &[]);
        let sorted = parents_first(&lineage.shards).into_iter().map(Shard::shard_id);
        assert_eq!(sorted.collect::<Vec<_>>(), ["b", "a", "c", "e", "d"]);
    }

    /// The rows of a and b were deleted, then the row of c.
    #[test]
    fn a_shard_whose_row_was_deleted_is_not_read_again() {
        for (rows, is_ready) in [
            (&["c"] as &[&str], &["c"] as &[&str]),
            (&["d", "e"], &["d", "e"]),
            // The row of a child may still be missing although its sibling has one.
            (&["d"], &["d", "e"]),
        ] {
            let mut lineage = lineage(merged_and_split(), &[]);
            let begun = rows
                .iter()
                .map(|&row| (row.into(), Checkpoint::at(Position::TrimHorizon)));
            lineage.checkpoints = begun.collect();
            lineage.finish_deleted();
            assert_eq!(ready(&lineage), is_ready, "{rows:?}");
        }
    }

    #[test]
    fn a_shard_whose_row_is_not_understood_and_its_children_wait() {
        let mut lineage = lineage(merged_and_split(), &["a"]);
        lineage.unreadable.insert("b".into());
        lineage.finish_deleted();
        assert_eq!(ready(&lineage), [] as [&str; 0]);
        assert_eq!(lineage.hole(), None);
    }

    /// The other parent of a merge had not started when the first one ended, because its own parent had not
    /// ended.
    #[test]
    fn a_shard_that_has_no_row_yet_is_not_taken_for_finished() {
        let shards = vec![
            shard("a", &[], (0, 99)),
            shard("b0", &[], (100, LAST)),
            shard("b", &["b0"], (100, LAST)),
            shard("c", &["a", "b"], (0, LAST)),
        ];
        let mut lineage = lineage(shards, &["a"]);
        for row in ["b0", "c"] {
            let begun = Checkpoint::at(Position::TrimHorizon);
            lineage.checkpoints.insert(row.into(), begun);
        }
        lineage.finish_deleted();
        assert_eq!(ready(&lineage), ["b0"]);
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
