//! The shards of the stream, their splits and their merges, drawn from the seed before a run begins.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, RngExt};

use super::fault::Fault;

/// A shard. It opens when it is created, and closes when it is split or merged.
#[derive(Debug, Clone)]
pub struct PlannedShard {
    pub opens: Duration,
    pub closes: Option<Duration>,
    pub parents: Vec<usize>,
    pub first_key: u128,
    pub last_key: u128,
}

impl PlannedShard {
    pub fn is_closed(&self, now: Duration) -> bool {
        self.closes.is_some_and(|closes| closes <= now)
    }

    fn is_open(&self, now: Duration) -> bool {
        self.opens <= now && !self.is_closed(now)
    }
}

/// Draws the shards: `shards` at the start, some of which are split or merged at `times`.
pub fn draw(
    rng: &mut SmallRng,
    shards: usize,
    times: BTreeSet<Duration>,
    wanted: &impl Fn(Fault) -> bool,
) -> Vec<PlannedShard> {
    let width = u128::MAX / shards as u128;
    let mut all: Vec<PlannedShard> = (0..shards as u128)
        .map(|shard| PlannedShard {
            opens: Duration::ZERO,
            closes: None,
            parents: Vec::new(),
            first_key: width * shard,
            last_key: width * shard + (width - 1),
        })
        .collect();
    if let Some(last) = all.last_mut() {
        last.last_key = u128::MAX;
    }
    for at in times {
        let mut open: Vec<usize> = (0..all.len())
            .filter(|&shard| all[shard].closes.is_none())
            .collect();
        open.sort_by_key(|&shard| all[shard].first_key);
        let which = rng.random_range(0..open.len());
        // Drawn before the check, so that an excluded fault does not change the other draws.
        let merge = rng.random_bool(0.5) && which + 1 < open.len();
        if !wanted(if merge { Fault::Merge } else { Fault::Split }) {
            continue;
        }
        let parents = if merge {
            vec![open[which], open[which + 1]]
        } else {
            vec![open[which]]
        };
        let (first, last) = (
            all[parents[0]].first_key,
            all[parents[parents.len() - 1]].last_key,
        );
        for &parent in &parents {
            all[parent].closes = Some(at);
        }
        let child = |first_key, last_key| PlannedShard {
            opens: at,
            closes: None,
            parents: parents.clone(),
            first_key,
            last_key,
        };
        if merge {
            all.push(child(first, last));
        } else {
            let middle = first / 2 + last / 2;
            all.push(child(first, middle));
            all.push(child(middle + 1, last));
        }
    }
    all
}

/// Returns the shard that receives the records of a key at this time.
pub fn owner(shards: &[PlannedShard], key: &str, at: Duration) -> usize {
    let hash = u128::from(super::plan::stream(0, key).next_u64()) << 64;
    shards
        .iter()
        .position(|shard| shard.is_open(at) && (shard.first_key..=shard.last_key).contains(&hash))
        .unwrap_or(0)
}

/// Returns the shards that are open at this time.
pub fn open(shards: &[PlannedShard], at: Duration) -> impl Iterator<Item = usize> + '_ {
    (0..shards.len()).filter(move |&shard| shards[shard].is_open(at))
}
