//! The plan for a fleet with workers of KCL 2, which obey no leader: each takes leases for itself, by the rules of KCL's
//! `DynamoDBLeaseTaker`. The leader applies the same rules on behalf of each worker of this crate.
//!
//! Every row counts as a lease, also that of a shard that has ended, because KCL 2 counts so too. A worker's
//! target is the number of leases divided by the number of workers, rounded up. A worker below its target takes
//! leases without an owner. If there are none, it takes one from the worker with the most leases.

use std::collections::BTreeMap;

use super::plan::{Owner, PlannedLease, PlannedWorker, Step, WorkerName};
use crate::record::ShardId;

/// Returns the steps for the workers of this crate. `may_move`: leases may be taken from workers that have more
/// than their target. The result does not depend on the order of the arguments.
pub(super) fn plan(leases: &[PlannedLease], ours: &[PlannedWorker], may_move: bool) -> Vec<Step> {
    let mut held: BTreeMap<WorkerName, Vec<&ShardId>> = ours
        .iter()
        .map(|worker| (worker.name.clone(), Vec::new()))
        .collect();
    let mut available = Vec::new();
    let mut sorted: Vec<&PlannedLease> = leases.iter().collect();
    sorted.sort_by(|a, b| a.shard.cmp(&b.shard));
    for lease in sorted {
        match &lease.owner {
            Owner::None => available.push(&lease.shard),
            Owner::Live(owner) | Owner::Receiving(owner) => {
                held.entry(owner.clone()).or_default().push(&lease.shard);
            }
        }
    }
    let target = leases.len().div_ceil(held.len().max(1)).max(1);
    let is_moving = leases
        .iter()
        .any(|lease| matches!(lease.owner, Owner::Receiving(_)));
    let mut steps = Vec::new();
    // The others take what they need themselves.
    let mut takers: Vec<&PlannedWorker> = ours.iter().collect();
    takers.sort_by(|a, b| a.name.cmp(&b.name));
    loop {
        let wants = |worker: &&&PlannedWorker| held[&worker.name].len() < target.min(worker.max_leases);
        let Some(taker) = takers
            .iter()
            .filter(wants)
            .min_by_key(|worker| held[&worker.name].len())
        else {
            return steps;
        };
        let to = taker.name.clone();
        if let Some(shard) = available.pop() {
            held.entry(to.clone()).or_default().push(shard);
            let shard = shard.clone();
            steps.push(Step::Assign { shard, to });
            continue;
        }
        // One lease at a time moves, as with KCL: its owner may be about to take leases from others, too.
        if may_move && !is_moving && steps.is_empty() {
            let need = target - held[&to].len();
            steps.extend(steal(&held, to, target, need));
        }
        return steps;
    }
}

/// Takes a lease from the worker with the most, if it has more than the target, or if the taker lacks more than
/// one.
fn steal(
    held: &BTreeMap<WorkerName, Vec<&ShardId>>,
    to: WorkerName,
    target: usize,
    need: usize,
) -> Option<Step> {
    let (from, theirs) = held.iter().max_by_key(|(_, theirs)| theirs.len())?;
    let is_above = theirs.len() > target || (theirs.len() == target && need > 1);
    let shard = theirs.last().filter(|_| is_above && *from != to)?;
    Some(Step::Move {
        shard: (*shard).clone(),
        from: from.clone(),
        to,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(name: &str) -> PlannedWorker {
        PlannedWorker {
            name: name.into(),
            max_leases: usize::MAX,
        }
    }

    /// Creates leases with these owners; `-` is none.
    fn leases(owners: &str) -> Vec<PlannedLease> {
        let lease = |(number, owner): (usize, &str)| PlannedLease {
            shard: format!("shardId-{number}").as_str().into(),
            owner: match owner {
                "-" => Owner::None,
                owner => Owner::Live(owner.into()),
            },
            is_ended: false,
            throughput: None,
        };
        owners.split(' ').enumerate().map(lease).collect()
    }

    fn count(steps: &[Step], name: &str) -> usize {
        let to_name = |step: &&Step| {
            let (Step::Assign { to, .. } | Step::Move { to, .. }) = step;
            **to == *name
        };
        steps.iter().filter(to_name).count()
    }

    #[test]
    fn worker_takes_up_to_its_share_of_what_is_available() {
        let steps = plan(&leases("java java - - - -"), &[worker("rust")], true);
        assert_eq!(
            (steps.len(), count(&steps, "rust")),
            (3, 3),
            "6 leases, 2 workers"
        );
        // The workers of this crate share their part evenly.
        let steps = plan(&leases("java java - - - -"), &[worker("a"), worker("b")], true);
        assert_eq!((count(&steps, "a"), count(&steps, "b")), (2, 2));
    }

    #[test]
    fn worker_below_its_target_takes_one_lease_from_the_one_with_most() {
        let steps = plan(&leases("java java java java"), &[worker("rust")], true);
        let [Step::Move { from, to, .. }] = &steps[..] else {
            panic!("one move: {steps:?}");
        };
        assert_eq!((&**from, &**to), ("java", "rust"));
        assert_eq!(plan(&leases("java java java java"), &[worker("rust")], false), []);
        assert_eq!(plan(&leases("java java rust rust"), &[worker("rust")], true), []);
        assert_eq!(
            plan(&leases("java java java rust rust"), &[worker("rust")], true),
            []
        );
    }

    #[test]
    fn limit_of_leases_holds() {
        let limited = PlannedWorker {
            max_leases: 1,
            ..worker("rust")
        };
        assert_eq!(plan(&leases("java - - -"), &[limited], true).len(), 1);
    }

    #[test]
    fn more_workers_than_leases() {
        assert_eq!(plan(&leases("java"), &[worker("rust")], true), []);
        assert_eq!(plan(&[], &[worker("rust")], true), []);
    }

    /// Each side follows the same rules in turn.
    #[test]
    fn two_kinds_of_takers_end_even() {
        let mut all = leases("java java java java java java java java java");
        let rust = [worker("rust-1"), worker("rust-2")];
        let mut runs = 0;
        loop {
            let steps = plan(&all, &rust, true);
            if steps.is_empty() {
                break;
            }
            runs += 1;
            assert!(runs < 20, "no end");
            for step in steps {
                let (Step::Assign { shard, to } | Step::Move { shard, to, .. }) = step;
                let lease = all.iter_mut().find(|lease| lease.shard == shard);
                lease.expect("a lease").owner = Owner::Live(to);
            }
        }
        let owned = |name: &str| {
            all.iter()
                .filter(|lease| lease.owner == Owner::Live(name.into()))
                .count()
        };
        assert_eq!([owned("java"), owned("rust-1"), owned("rust-2")], [3, 3, 3]);
    }
}
