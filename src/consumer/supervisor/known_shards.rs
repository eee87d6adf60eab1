//! Facts about shards that this process has learned and that a later listing may lack.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::checkpoint::Checkpoint;
use crate::consumer::shards::lineage::Lineage;
use crate::record::{Position, ShardId};

/// The longest time that a listing may lag behind. A shard that is listed as open for longer is open,
/// although its row says that it has ended.
const LISTING_LAG: Duration = Duration::from_secs(30);

/// The shards that have ended, and those that were not listed when the consumer started.
#[derive(Debug, Default)]
pub(super) struct KnownShards {
    /// The shards whose end was stored or seen. An abandoned write may still replace such a row by an older
    /// one.
    ended: HashSet<ShardId>,
    /// The shards that are listed as open although their rows say that they have ended, and since when.
    ended_and_open: HashMap<ShardId, Instant>,
    /// The checkpoints of shards that were not listed when the consumer started. Each stays here until the
    /// end of its shard is stored.
    unlisted: HashMap<ShardId, Checkpoint>,
}

impl KnownShards {
    pub(super) fn has_ended(&self, shard: &ShardId) -> bool {
        self.ended.contains(shard)
    }

    /// Notes that the end of the shard is stored, or was seen.
    pub(super) fn note_end(&mut self, shard: ShardId) {
        self.ended.insert(shard);
    }

    /// Learns from a listing, and adds to it what this process knows better.
    pub(super) fn complete(&mut self, found: &mut Lineage) {
        self.complete_ends(found);
        // Checkpoints of unlisted shards are read only once, when the consumer starts.
        for shard in found.unlisted() {
            if let Some(row) = found.checkpoints.get(&shard) {
                self.unlisted.insert(shard, row.clone());
            }
        }
        self.unlisted.retain(|shard, _| !self.ended.contains(shard));
        for (shard, row) in &self.unlisted {
            let known = found.checkpoints.entry(shard.clone());
            known.or_insert_with(|| row.clone());
        }
    }

    fn complete_ends(&mut self, found: &mut Lineage) {
        // The end that was seen belongs to a shard of the earlier stream.
        self.ended.retain(|shard| !found.outdated.contains_key(shard));
        let seen = found.checkpoints.iter().filter(|(_, row)| is_end(row));
        self.ended.extend(seen.map(|(shard, _)| shard.clone()));
        for shard in &self.ended {
            let row = found.checkpoints.get(shard);
            if row.is_some_and(is_end) {
                continue;
            }
            // A late write may have replaced the row by an older one. The `read_until` of that row is too
            // early, which is safe.
            let ended = Checkpoint::at(Position::ShardEnd);
            let ended = match row.and_then(Checkpoint::read_until) {
                Some(time) => ended.with_read_until(time),
                None => ended,
            };
            found.checkpoints.insert(shard.clone(), ended);
        }
    }

    /// Treats the row of an ended shard as outdated if the shard is listed as open for longer than a listing
    /// may lag behind. Such a row belongs to another stream. Returns the delay before the next check, if a
    /// listing may still lag behind.
    pub(super) fn doubt_ends(&mut self, found: &mut Lineage) -> Option<Duration> {
        let shards = found.ended_and_open();
        self.ended_and_open.retain(|shard, _| shards.contains(shard));
        let mut next_check = None;
        for shard in shards {
            let since = *self
                .ended_and_open
                .entry(shard.clone())
                .or_insert_with(Instant::now);
            if since.elapsed() < LISTING_LAG {
                next_check = Some(LISTING_LAG / 3);
                continue;
            }
            self.ended_and_open.remove(&shard);
            self.ended.remove(&shard);
            let beginning = Checkpoint::at(Position::TrimHorizon);
            if let Some(row) = found.checkpoints.insert(shard.clone(), beginning) {
                found.outdated.insert(shard, row);
            }
        }
        next_check
    }
}

fn is_end(checkpoint: &Checkpoint) -> bool {
    *checkpoint.position() == Position::ShardEnd
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::consumer::shards::lineage::tests::{lineage, shard};

    fn listed(names: &[&str], ended: &[&str]) -> Lineage {
        let shards = names.iter().map(|name| shard(name, &[], (0, u128::MAX)));
        lineage(shards.collect(), ended)
    }

    fn row(found: &Lineage, shard: &str) -> Option<Checkpoint> {
        found.checkpoints.get(&shard.into()).cloned()
    }

    #[test]
    fn end_that_was_seen_outlives_a_late_write_to_its_row() {
        let (mut known, end) = (KnownShards::default(), Checkpoint::at(Position::ShardEnd));
        known.complete(&mut listed(&["a"], &["a"]));
        assert!(known.has_ended(&"a".into()));
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(7);
        let late = Checkpoint::at(Position::TrimHorizon).with_read_until(time);
        let mut found = listed(&["a"], &[]);
        found.checkpoints.insert("a".into(), late);
        known.complete(&mut found);
        assert_eq!(row(&found, "a"), Some(end.with_read_until(time)));
    }

    #[test]
    fn end_of_an_earlier_stream_is_forgotten() {
        let mut known = KnownShards::default();
        known.note_end("a".into());
        let mut found = listed(&["a"], &[]);
        let row = Checkpoint::at(Position::ShardEnd);
        found.outdated.insert("a".into(), row);
        known.complete(&mut found);
        assert!(!known.has_ended(&"a".into()));
    }

    /// The checkpoints of unlisted shards come with the first listing only.
    #[test]
    fn unlisted_shard_is_known_until_its_end() {
        let (mut known, begun) = (KnownShards::default(), Checkpoint::at(Position::TrimHorizon));
        let mut first = listed(&["b"], &[]);
        first.checkpoints.insert("a".into(), begun.clone());
        known.complete(&mut first);
        let mut second = listed(&["b"], &[]);
        known.complete(&mut second);
        assert_eq!(row(&second, "a"), Some(begun));
        known.note_end("a".into());
        let mut third = listed(&["b"], &[]);
        known.complete(&mut third);
        assert_eq!(row(&third, "a"), Some(Checkpoint::at(Position::ShardEnd)));
    }

    #[tokio::test(start_paused = true)]
    async fn end_of_a_shard_that_stays_open_is_outdated() {
        let mut known = KnownShards::default();
        let mut doubt = |ended: &[&str]| {
            let mut found = listed(&["a"], ended);
            known.complete(&mut found);
            let next_check = known.doubt_ends(&mut found);
            (next_check.is_some(), found.outdated.contains_key(&"a".into()))
        };
        assert_eq!(doubt(&["a"]), (true, false));
        tokio::time::advance(LISTING_LAG / 2).await;
        assert_eq!(doubt(&["a"]), (true, false));
        tokio::time::advance(LISTING_LAG / 2).await;
        assert_eq!(doubt(&["a"]), (false, true));
        assert_eq!(doubt(&[]), (false, false), "the end is forgotten");
    }
}
