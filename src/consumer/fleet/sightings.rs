//! The leader's memory of the fleet: which leases are renewed, and which workers live.
//!
//! Times are those of this machine's monotonic clock. A lease that is seen for the first time counts as renewed
//! at that moment, so a new leader waits for the failover time before it takes a lease from a dead worker. A worker
//! that expects to become the leader watches the rows before.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::plan::Owner;
use crate::checkpoint::{AnnouncedWorker, SharedLease};
use crate::record::ShardId;
use crate::sabotage::Sabotage;

/// The time in which a worker hands a lease over (KCL's default), before the failover time.
const HAND_OVER: Duration = Duration::from_secs(30);
/// The time for which a worker lives after an announcement. Workers announce themselves every 30 s.
const ANNOUNCED_FOR: Duration = Duration::from_secs(60);

/// The time after which a worker that renews leases without an announcement counts as one of KCL 2.
const UNANNOUNCED_FOR: Duration = Duration::from_secs(120);

/// The rows and workers as the leader has seen them.
#[derive(Debug)]
pub(super) struct Sightings {
    failover_time: Duration,
    rows: HashMap<ShardId, SeenRow>,
    workers: HashMap<String, SeenWorker>,
    live: HashSet<String>,
    /// The owners that renew leases and have not announced themselves, and since when.
    unannounced: HashMap<String, Instant>,
}

#[derive(Debug)]
struct SeenWorker {
    /// The last announcement.
    sign: u64,
    /// The time of the last sign of life. `None`: there was none, or a lease of the worker has expired since.
    since: Option<Instant>,
}

#[derive(Debug)]
struct SeenRow {
    owner: Option<String>,
    handed_over_by: Option<String>,
    counter: u64,
    /// The time at which the counter was first seen.
    renewed: Instant,
    /// The time at which the hand-off was first seen.
    requested: Instant,
    /// True if the owner has written to the row since it became the owner.
    is_taken_up: bool,
    is_expired: bool,
}

/// A lease whose owner has stopped to renew it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expired {
    pub(super) shard: ShardId,
    pub(super) owner: String,
}

/// The workers that came and went since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) joined: Vec<String>,
    pub(super) left: Vec<String>,
}

impl Sightings {
    pub(super) fn new(failover_time: Duration) -> Self {
        Sightings {
            failover_time,
            rows: HashMap::new(),
            workers: HashMap::new(),
            unannounced: HashMap::new(),
            live: HashSet::new(),
        }
    }

    /// Learns from a scan of all rows which leases are renewed.
    pub(super) fn watch(&mut self, leases: &[SharedLease], now: Instant) {
        let there: HashSet<&ShardId> = leases.iter().map(|lease| &lease.key.shard).collect();
        self.rows.retain(|shard, _| there.contains(shard));
        for lease in leases {
            let fresh = || SeenRow {
                owner: lease.owner.clone(),
                handed_over_by: lease.handed_over_by.clone(),
                counter: lease.counter,
                renewed: now,
                requested: now,
                is_taken_up: false,
                is_expired: false,
            };
            let seen = self.rows.entry(lease.key.shard.clone()).or_insert_with(fresh);
            let has_other_owner =
                (&seen.owner, &seen.handed_over_by) != (&lease.owner, &lease.handed_over_by);
            if seen.counter != lease.counter {
                seen.renewed = now;
                seen.is_expired = false;
                seen.is_taken_up = true;
            }
            if has_other_owner {
                seen.requested = now;
                seen.is_taken_up = false;
            }
            seen.counter = lease.counter;
            seen.owner.clone_from(&lease.owner);
            seen.handed_over_by.clone_from(&lease.handed_over_by);
        }
    }

    /// Learns from a scan of all rows. Returns the leases that have expired since the last scan.
    pub(super) fn observe(&mut self, leases: &[SharedLease], now: Instant) -> Vec<Expired> {
        self.watch(leases, now);
        let mut expired = Vec::new();
        for lease in leases {
            let shard = &lease.key.shard;
            let Some(seen) = self.rows.get_mut(shard) else {
                continue;
            };
            let is_expired = now.duration_since(seen.renewed) >= self.failover_time;
            if let Some(owner) = lease.holder().filter(|_| is_expired && !seen.is_expired) {
                expired.push(Expired {
                    shard: shard.clone(),
                    owner: owner.to_owned(),
                });
            }
            seen.is_expired = is_expired;
        }
        expired
    }

    /// Learns from the announcements. A worker lives for a minute after each announcement. A worker whose lease
    /// has just expired does not live until it announces itself again.
    pub(super) fn observe_workers(
        &mut self,
        workers: &[AnnouncedWorker],
        expired: &[Expired],
        now: Instant,
    ) -> Changes {
        let there: HashSet<&String> = workers.iter().map(|worker| &worker.name).collect();
        self.workers.retain(|name, _| there.contains(name));
        let mut live = HashSet::new();
        for worker in workers {
            // Later announcements show the time by themselves: the clocks of two machines may differ.
            let seen = self.workers.entry(worker.name.clone()).or_insert(SeenWorker {
                sign: worker.sign,
                since: worker.is_recent.then_some(now),
            });
            if seen.sign != worker.sign {
                *seen = SeenWorker {
                    sign: worker.sign,
                    since: Some(now),
                };
            } else if expired.iter().any(|expired| expired.owner == worker.name) {
                seen.since = None;
            }
            let lives = seen
                .since
                .is_some_and(|since| now.duration_since(since) <= ANNOUNCED_FOR);
            if lives && !worker.is_stopping {
                live.insert(worker.name.clone());
            }
        }
        let changes = Changes {
            joined: missing(&live, &self.live),
            left: missing(&self.live, &live),
        };
        self.live = live;
        changes
    }

    /// Returns true if a worker renews leases for long without an announcement, as KCL 2 does. A worker that
    /// stops in order takes its announcement back a little earlier.
    pub(super) fn has_unannounced(
        &mut self,
        leases: &[SharedLease],
        workers: &[AnnouncedWorker],
        now: Instant,
    ) -> bool {
        let announced: HashSet<&str> = workers.iter().map(|worker| worker.name.as_str()).collect();
        let live = leases
            .iter()
            .filter(|lease| self.owner(lease, now) != Owner::None);
        let holders: HashSet<&str> = live.filter_map(SharedLease::holder).collect();
        let unannounced: HashSet<&str> = holders.difference(&announced).copied().collect();
        self.unannounced
            .retain(|name, _| unannounced.contains(name.as_str()));
        for name in unannounced {
            self.unannounced.entry(name.to_owned()).or_insert(now);
        }
        let mut since = self.unannounced.values();
        since.any(|since| now.duration_since(*since) >= UNANNOUNCED_FOR)
    }

    pub(super) fn failover_time(&self) -> Duration {
        self.failover_time
    }

    /// Returns the number of living workers.
    pub(super) fn living(&self) -> usize {
        self.live.len()
    }

    pub(super) fn lives(&self, worker: &str) -> bool {
        self.live.contains(worker)
    }

    /// Returns the owner of a lease, for the plan. A hand-off that takes too long, or to a worker that does not
    /// live, leaves the lease without an owner. An owner that has not taken up its lease cannot be asked to hand
    /// it over: it finds its leases by the column that the request changes, so it would never see the request,
    /// and the lease would expire.
    pub(super) fn owner(&self, lease: &SharedLease, now: Instant) -> Owner {
        let (Some(seen), Some(owner)) = (self.rows.get(&lease.key.shard), &lease.owner) else {
            return Owner::None;
        };
        if seen.is_expired {
            return Owner::None;
        }
        match &lease.handed_over_by {
            Some(_) if self.is_stuck(lease, now) => Owner::None,
            Some(_) if Sabotage::LeaderIgnoresHandOver.is_committed() => Owner::None,
            Some(_) => Owner::Receiving(owner.as_str().into()),
            None if Sabotage::RequestUnseen.is_committed() => Owner::Live(owner.as_str().into()),
            None if !seen.is_taken_up => Owner::Receiving(owner.as_str().into()),
            None => Owner::Live(owner.as_str().into()),
        }
    }

    /// Returns true if no worker has written to the row for this time.
    pub(super) fn is_untouched_for(&self, lease: &SharedLease, time: Duration, now: Instant) -> bool {
        let seen = self.rows.get(&lease.key.shard);
        seen.is_some_and(|seen| now.duration_since(seen.renewed) >= time)
    }

    /// Returns true if a hand-off takes longer than a living worker needs for it.
    pub(super) fn is_stuck(&self, lease: &SharedLease, now: Instant) -> bool {
        let seen = self.rows.get(&lease.key.shard);
        lease.handed_over_by.is_some()
            && seen.is_some_and(|seen| now.duration_since(seen.requested) >= HAND_OVER + self.failover_time)
    }
}

/// Returns the names that `from` lacks, sorted.
fn missing(names: &HashSet<String>, from: &HashSet<String>) -> Vec<String> {
    let mut missing: Vec<String> = names.difference(from).cloned().collect();
    missing.sort();
    missing
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;
    use crate::checkpoint::{Checkpoint, ShardKey};
    use crate::record::Position;

    const FAILOVER: Duration = Duration::from_secs(10);

    fn lease(owner: Option<&str>, by: Option<&str>, counter: u64) -> SharedLease {
        let key = ShardKey::new("billing", "orders", "a".into());
        SharedLease {
            owner: owner.map(str::to_owned),
            handed_over_by: by.map(str::to_owned),
            counter,
            ..SharedLease::new(key, Checkpoint::at(Position::TrimHorizon))
        }
    }

    fn live(name: &str) -> Owner {
        Owner::Live(name.into())
    }

    fn receiving(name: &str) -> Owner {
        Owner::Receiving(name.into())
    }

    #[test]
    fn lease_expires_when_its_counter_stays_for_the_failover_time() {
        let (mut seen, start) = (Sightings::new(FAILOVER), Instant::now());
        let row = lease(Some("w1"), None, 5);
        assert_eq!(seen.observe(from_ref(&row), start), []);
        assert_eq!(
            seen.owner(&row, start),
            receiving("w1"),
            "the first sight is a renewal, but not one by the owner"
        );
        let before = start + FAILOVER - Duration::from_millis(1);
        assert_eq!(seen.observe(from_ref(&row), before), []);
        let expired = seen.observe(from_ref(&row), start + FAILOVER);
        assert_eq!(expired.len(), 1);
        assert_eq!(seen.owner(&row, start + FAILOVER), Owner::None);
        assert_eq!(seen.observe(&[row], start + FAILOVER * 2), [], "reported once");
        let renewed = lease(Some("w1"), None, 6);
        assert_eq!(seen.observe(from_ref(&renewed), start + FAILOVER * 2), []);
        assert_eq!(seen.owner(&renewed, start + FAILOVER * 2), live("w1"));
    }

    #[test]
    fn new_leader_that_has_watched_takes_the_leases_of_failed_workers_at_once() {
        let (mut seen, start) = (Sightings::new(FAILOVER), Instant::now());
        let row = lease(Some("w1"), None, 5);
        seen.watch(from_ref(&row), start);
        seen.watch(from_ref(&row), start + FAILOVER);
        // Its first look as the leader.
        let now = start + FAILOVER;
        let expired = seen.observe(from_ref(&row), now);
        assert_eq!(expired.len(), 1);
        assert_eq!(seen.owner(&row, now), Owner::None);
        seen.observe_workers(&[AnnouncedWorker::new("w1", 1)], &expired, now);
        assert!(!seen.lives("w1"), "it announced itself before it failed");
    }

    #[test]
    fn request_is_no_sign_of_life() {
        let (mut seen, start) = (Sightings::new(FAILOVER), Instant::now());
        seen.observe(&[lease(Some("w1"), None, 5)], start);
        let requested = lease(Some("w2"), Some("w1"), 5);
        seen.observe(from_ref(&requested), start + FAILOVER / 2);
        assert_eq!(seen.owner(&requested, start + FAILOVER / 2), receiving("w2"));
        let expired = seen.observe(from_ref(&requested), start + FAILOVER);
        assert_eq!(expired[0].owner, "w1");
        assert_eq!(seen.owner(&requested, start + FAILOVER), Owner::None);
    }

    #[test]
    fn lease_is_live_when_its_owner_has_taken_it_up() {
        let (mut seen, now) = (Sightings::new(FAILOVER), Instant::now());
        let mut owner = |row: SharedLease| {
            seen.observe(from_ref(&row), now);
            seen.owner(&row, now)
        };
        assert_eq!(owner(lease(Some("w1"), None, 5)), receiving("w1"));
        assert_eq!(owner(lease(Some("w1"), None, 6)), live("w1"));
        // Assigned to another worker.
        assert_eq!(owner(lease(Some("w2"), None, 7)), receiving("w2"));
        assert_eq!(owner(lease(Some("w2"), None, 8)), live("w2"));
        // Handed over: requested, renewed by the former owner, released by it.
        assert_eq!(owner(lease(Some("w3"), Some("w2"), 8)), receiving("w3"));
        assert_eq!(owner(lease(Some("w3"), Some("w2"), 9)), receiving("w3"));
        assert_eq!(owner(lease(Some("w3"), None, 10)), receiving("w3"));
        assert_eq!(owner(lease(Some("w3"), None, 11)), live("w3"));
    }

    #[test]
    fn hand_off_that_takes_too_long_is_stuck() {
        let (mut seen, mut now) = (Sightings::new(FAILOVER), Instant::now());
        let end = now + HAND_OVER + FAILOVER;
        let mut counter = 0;
        while now < end {
            counter += 1;
            let row = lease(Some("w2"), Some("w1"), counter);
            seen.observe(from_ref(&row), now);
            assert!(!seen.is_stuck(&row, now));
            now += FAILOVER / 2;
        }
        let row = lease(Some("w2"), Some("w1"), counter + 1);
        seen.observe(from_ref(&row), now);
        assert!(seen.is_stuck(&row, now));
        assert_eq!(seen.owner(&row, now), Owner::None);
    }

    #[test]
    fn worker_with_an_expired_lease_is_dead_until_it_announces_itself() {
        let (mut seen, now) = (Sightings::new(FAILOVER), Instant::now());
        let announced = |sign| [AnnouncedWorker::new("w1", sign)];
        let expired = [Expired {
            shard: "a".into(),
            owner: "w1".into(),
        }];
        let joined = seen.observe_workers(&announced(1), &[], now);
        assert_eq!((joined.joined, joined.left), (vec!["w1".to_owned()], vec![]));
        let left = seen.observe_workers(&announced(1), &expired, now);
        assert_eq!((left.joined, left.left), (vec![], vec!["w1".to_owned()]));
        assert_eq!(seen.observe_workers(&announced(1), &[], now), Changes::default());
        assert!(!seen.lives("w1"));
        seen.observe_workers(&announced(2), &[], now);
        assert!(seen.lives("w1"));
    }

    /// The clock of the dead worker was ahead: its announcement seems to be recent for long.
    #[test]
    fn worker_that_stays_silent_for_a_minute_is_dead() {
        let (mut seen, start) = (Sightings::new(FAILOVER), Instant::now());
        let announced = |sign| [AnnouncedWorker::new("w1", sign)];
        seen.observe_workers(&announced(1), &[], start);
        seen.observe_workers(&announced(1), &[], start + ANNOUNCED_FOR);
        assert!(seen.lives("w1"));
        let later = start + ANNOUNCED_FOR + Duration::from_secs(1);
        seen.observe_workers(&announced(1), &[], later);
        assert!(!seen.lives("w1"));
    }

    /// The clock of the living worker is behind: its announcements seem to be old.
    #[test]
    fn worker_that_goes_on_announcing_itself_lives() {
        let (mut seen, now) = (Sightings::new(FAILOVER), Instant::now());
        let announced = |sign| AnnouncedWorker {
            is_recent: false,
            ..AnnouncedWorker::new("w1", sign)
        };
        seen.observe_workers(&[announced(1)], &[], now);
        assert!(!seen.lives("w1"));
        seen.observe_workers(&[announced(2)], &[], now);
        assert!(seen.lives("w1"));
        let stopping = AnnouncedWorker {
            is_stopping: true,
            ..announced(3)
        };
        seen.observe_workers(&[stopping], &[], now);
        assert!(!seen.lives("w1"));
    }

    #[test]
    fn worker_that_renews_for_long_without_an_announcement_is_noticed() {
        let (mut seen, start) = (Sightings::new(FAILOVER), Instant::now());
        let mut now = start;
        let mut counter = 0;
        let mut look = |seen: &mut Sightings, now: Instant, workers: &[AnnouncedWorker]| {
            counter += 1;
            let row = lease(Some("java"), None, counter);
            seen.observe(from_ref(&row), now);
            seen.has_unannounced(&[row], workers, now)
        };
        while now < start + UNANNOUNCED_FOR {
            assert!(!look(&mut seen, now, &[]));
            now += FAILOVER / 2;
        }
        assert!(look(&mut seen, now, &[]));
        assert!(!look(&mut seen, now, &[AnnouncedWorker::new("java", 1)]));
        assert!(!look(&mut seen, now, &[]), "the time starts again");
    }
}
