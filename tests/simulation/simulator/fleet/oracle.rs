//! The promises of a fleet.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use redrive::ShardId;
use redrive::checkpoint::Checkpoint;

use super::tables::{Kind, OWNER, Tables, Written, holder};
use crate::dynamo::{self, text};
use crate::oracle::{Checked, Fate, Promise, covers, ensure};
use crate::plan::Plan;
use crate::world::{BEAT_KEY, shard_id, shard_index};

/// The failover time of leases.
pub const FAILOVER: Duration = Duration::from_secs(10);
/// The time for which a worker may begin records after a renewal that succeeded.
const RENEWED_FOR: Duration = Duration::from_millis(6_667);
/// The time in which a worker that was suspended notices it.
const NOTICES: Duration = Duration::from_millis(200);

/// The time after the last fault in which every open shard is read: three leases of the leader and three failover
/// times.
pub const READ_WITHIN: Duration = Duration::from_secs(3 * 30 + 3 * 10);
/// The time in addition for each shard that was split or merged: its children wait for its end.
pub const READ_WITHIN_PER_RESHARD: Duration = Duration::from_secs(30);
/// The time after the last fault in which the shares are even: the leader also moves leases, two in each failover
/// time, and each of them waits until its records in flight are settled.
pub const EVEN_WITHIN: Duration = Duration::from_secs(3 * 30 + 3 * 10 + 180);
/// The time for which even shares must not change. It begins before the time above is over.
pub const WATCHED: Duration = Duration::from_secs(30);
/// The time for which a shard counts as read after each read.
const READ_FOR: Duration = Duration::from_secs(30);

/// A worker and a shard.
type Claim = (usize, usize);

#[derive(Debug, Default)]
pub struct Oracle {
    /// The times at which a worker read in a row that it has lost the lease.
    lost: HashMap<Claim, Duration>,
    /// The counter of a row after the last write of a worker that raised it and that the worker knows of, and the
    /// time just before that write. A request raises no counter, so it is no renewal.
    renewed: HashMap<Claim, (u64, Duration)>,
    /// The checkpoints at which a worker has taken up a row.
    taken: HashMap<Claim, Checkpoint>,
    /// The time of the end of each worker's last pause.
    pub awake: HashMap<usize, Duration>,
    /// The workers that were asked to stop.
    pub leaving: HashSet<usize>,
    /// The number of changes of the owner of a row.
    pub moves: u64,
    /// The records of each partition key, in the order in which they were put.
    lanes: HashMap<String, Vec<(usize, usize)>>,
}

/// Returns the number of a worker, which stands in its name.
pub fn worker_index(name: &str) -> Option<usize> {
    name.strip_prefix('w')?.split('-').next()?.parse().ok()
}

impl Oracle {
    pub fn new(shards: &[Vec<Fate>]) -> Self {
        let mut lanes: HashMap<String, Vec<(usize, usize)>> = HashMap::new();
        let mut all: Vec<(Duration, usize, usize, &str)> = Vec::new();
        for (shard, fates) in shards.iter().enumerate() {
            for (index, fate) in fates.iter().enumerate() {
                all.push((fate.planned.at, shard, index, &fate.planned.key));
            }
        }
        all.sort();
        for (_, shard, index, key) in all {
            lanes.entry(key.to_owned()).or_default().push((shard, index));
        }
        Oracle {
            lanes,
            ..Oracle::default()
        }
    }

    /// Checks a worker that begins a record.
    pub fn begins(
        &self,
        tables: &Tables,
        plan: &Plan,
        fates: &[Vec<Fate>],
        worker: usize,
        (shard, index): (usize, usize),
        now: Duration,
    ) -> Checked {
        let fate = &fates[shard][index];
        let row = tables.item(Kind::Leases, &shard_id(shard));
        let owner = row.and_then(holder);
        let claim = (worker, shard);
        if self.awake.get(&worker).is_none_or(|at| now > *at + NOTICES) {
            ensure(
                Promise::Fenced,
                owner.and_then(worker_index) == Some(worker),
                || format!("w{worker:02} begins {}, which {owner:?} works on", fate.name()),
            )?;
            let lost = self.lost.get(&claim);
            ensure(Promise::Fenced, lost.is_none_or(|at| now <= *at), || {
                format!(
                    "w{worker:02} begins {}, and knows since {lost:?} that it has lost the lease",
                    fate.name()
                )
            })?;
            let renewed = self.renewed.get(&claim);
            let is_renewed = renewed.is_some_and(|(_, at)| now <= *at + RENEWED_FOR + NOTICES);
            ensure(Promise::Fenced, is_renewed, || {
                format!(
                    "w{worker:02} begins {} at {now:?}, last renewed at {renewed:?}",
                    fate.name()
                )
            })?;
        }
        let covered = self
            .taken
            .get(&claim)
            .is_some_and(|taken| covers(taken, &fate.record));
        ensure(Promise::NoRepeat, !covered, || {
            format!("w{worker:02} begins {}, which the checkpoint covers", fate.name())
        })?;
        if fate.is_settled() || fate.planned.key.starts_with(BEAT_KEY) {
            return Ok(());
        }
        let lane = self.lanes.get(&fate.planned.key).into_iter().flatten();
        let mut before = lane.take_while(|place| **place != (shard, index));
        let ahead = before.find(|(shard, index)| !fates[*shard][*index].is_settled());
        ensure(Promise::Order, ahead.is_none(), || {
            let ahead = ahead.map_or(String::new(), |&(shard, index)| fates[shard][index].name());
            format!("{} overtakes {ahead}", fate.name())
        })?;
        let mut parents = plan.shards[shard]
            .parents
            .iter()
            .flat_map(|&parent| &fates[parent]);
        let open = parents.find(|fate| !fate.is_settled());
        ensure(Promise::Lineage, open.is_none(), || {
            format!(
                "{} begins before {}",
                fate.name(),
                open.map_or(String::new(), Fate::name)
            )
        })
    }

    /// Learns from a change of a row, and checks it. Returns the shard and its checkpoint if it has changed.
    pub fn written(&mut self, written: &Written) -> Result<Option<(usize, Checkpoint)>, crate::Violation> {
        let (Kind::Leases, Some(after)) = (written.table, &written.after) else {
            return Ok(None);
        };
        let (Some(shard), Some(checkpoint)) = (shard_index(&written.key), dynamo::checkpoint(after)) else {
            return Ok(None);
        };
        let owner = |row: &dynamo::Item| text(row, OWNER).map(str::to_owned);
        self.moves += u64::from(written.before.as_ref().and_then(owner) != owner(after));
        let Some(before) = &written.before else {
            return Ok(None);
        };
        let column = |name: &str| before.get(name) == after.get(name);
        if column("checkpoint") && column("redriveAhead") {
            return Ok(None);
        }
        let earlier = dynamo::checkpoint(before);
        let is_back = earlier
            .as_ref()
            .is_some_and(|earlier| earlier.position() > checkpoint.position());
        ensure(Promise::NoWayBack, !is_back, || {
            format!("shard {shard}: {checkpoint:?} after {earlier:?}")
        })?;
        Ok(Some((shard, checkpoint)))
    }

    /// Checks a lease that a leader reports as expired, in a seed without a fault that delays renewals.
    pub fn expired(&self, leader: usize, shard: &ShardId, owner: &str) -> Checked {
        let is_leaving = worker_index(owner).is_some_and(|owner| self.leaving.contains(&owner));
        ensure(Promise::Renewed, is_leaving, || {
            format!("the lease of {owner} for {shard} has expired, as w{leader:02} sees it")
        })
    }

    /// Learns what a worker knows once it has the answer to a call for a row.
    pub fn delivered(
        &mut self,
        worker: usize,
        operation: &str,
        sent: Duration,
        now: Duration,
        row: &dynamo::Item,
    ) {
        let Some(shard) = dynamo::shard_of(row) else {
            return;
        };
        let claim = (worker, shard);
        let is_holder = holder(row).and_then(worker_index) == Some(worker);
        match operation {
            "UpdateItem" if is_holder => {
                let counter = dynamo::counter(row);
                if self.renewed.get(&claim).is_none_or(|(last, _)| counter > *last) {
                    self.renewed.insert(claim, (counter, sent));
                }
                self.lost.remove(&claim);
            }
            "GetItem" if !is_holder => drop(self.lost.entry(claim).or_insert(now)),
            _ => {}
        }
    }

    /// Learns that a worker has taken up a row, and checks that the row was assigned to the worker and that no
    /// other worker worked on the shard.
    pub fn taken(&mut self, worker: usize, written: &Written) -> Checked {
        let (Some(before), Some(after)) = (&written.before, &written.after) else {
            return Ok(());
        };
        if let (Some(shard), Some(checkpoint)) = (dynamo::shard_of(after), dynamo::checkpoint(after)) {
            self.taken.insert((worker, shard), checkpoint);
        }
        let before = holder(before);
        ensure(
            Promise::Fenced,
            before.and_then(worker_index) == Some(worker),
            || format!("w{worker:02} takes up {}, which {before:?} works on", written.key),
        )
    }
}

/// The state of a fleet after the last fault.
#[derive(Debug)]
pub struct Status {
    /// The reason why not every open shard is read by a living worker.
    pub unread: Option<String>,
    /// The numbers of open shards of the living workers.
    pub shares: Vec<(usize, usize)>,
    /// A shard that was split or merged has unsettled records.
    pub is_blocked: bool,
    pub is_handing_over: bool,
}

impl Status {
    pub fn of(
        tables: &Tables,
        plan: &Plan,
        fates: &[Vec<Fate>],
        read_at: &HashMap<usize, Duration>,
        living: &[usize],
        now: Duration,
    ) -> Self {
        let mut shares: Vec<(usize, usize)> = living.iter().map(|worker| (*worker, 0)).collect();
        let (mut unread, mut is_handing_over) = (None, false);
        let mut is_blocked = false;
        for (shard, planned) in plan.shards.iter().enumerate() {
            if planned.is_closed(now) {
                // The children of the shard wait for its records.
                is_blocked |= fates[shard].iter().any(|fate| !fate.is_settled());
                continue;
            }
            let Some(row) = tables.item(Kind::Leases, &shard_id(shard)) else {
                unread.get_or_insert_with(|| format!("shard {shard} has no row"));
                continue;
            };
            is_handing_over |= row.contains_key("checkpointOwner");
            let owner = holder(row).and_then(worker_index);
            match shares.iter_mut().find(|(worker, _)| Some(*worker) == owner) {
                Some((_, count)) => *count += 1,
                None => {
                    unread.get_or_insert_with(|| format!("{:?} works on shard {shard}", holder(row)));
                }
            }
            let read = read_at.get(&shard).copied();
            if read.is_none_or(|at| now > at + READ_FOR) {
                unread.get_or_insert_with(|| format!("shard {shard} was last read at {read:?}"));
            }
        }
        Status {
            unread,
            shares,
            is_blocked,
            is_handing_over,
        }
    }

    pub fn is_even(&self) -> bool {
        let counts = || self.shares.iter().map(|(_, count)| *count);
        let apart = counts().max().unwrap_or(0) - counts().min().unwrap_or(0);
        apart <= 1 && !self.is_handing_over
    }
}
