//! The real consumer in a simulated world, under faults of every kind. An oracle checks the promises after
//! every step. The command `simulate` runs more seeds than fit in a test.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use redrive::Sabotage;

use simulator::{
    Counts, Fault, Options, Outcome, Promise, Step, Violation, minimise, simulate, simulate_fleet,
};

/// Returns the number of seeds that a test runs: `large` with `REDRIVE_TEST_LARGE=1`, `usual` otherwise.
fn volume(usual: u64, large: u64) -> u64 {
    match std::env::var("REDRIVE_TEST_LARGE").is_ok_and(|value| value == "1") {
        true => large,
        false => usual,
    }
}

/// Returns the seed at which the search for a deliberate fault begins. Few seeds meet some faults, and a
/// build without optimization takes a second per seed.
fn first_seed(sabotage: Sabotage) -> u64 {
    match sabotage {
        Sabotage::HideDataLoss => 60,
        Sabotage::ReadDuringHandOver => 6,
        Sabotage::IgnoreRequest => 31,
        Sabotage::LeaderIgnoresHandOver => 254,
        _ => 0,
    }
}

type Simulate = fn(&Options, bool) -> Outcome;

/// Runs seeds on all cores until `enough` returns true for an outcome, or all seeds were run.
fn run(
    simulate: Simulate,
    seeds: Range<u64>,
    sabotage: Option<Sabotage>,
    enough: impl Fn(u64, &Outcome) -> bool + Sync,
) -> Vec<(u64, Outcome)> {
    let (next, outcomes) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    let work = || {
        Sabotage::commit(sabotage);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let outcome = simulate(&Options::of(seed), false);
            if enough(seed, &outcome) {
                next.store(seeds.end, Ordering::Relaxed);
            }
            outcomes
                .lock()
                .expect("the lock is not poisoned")
                .push((seed, outcome));
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let mut outcomes = outcomes.into_inner().expect("the lock is not poisoned");
    outcomes.sort_by_key(|(seed, _)| *seed);
    outcomes
}

#[test]
fn no_seed_breaks_a_promise_and_all_faults_are_injected() {
    let seeds = volume(200, 300);
    let counts = run_clean(simulate, seeds);
    let never = never_injected(&counts, |fault| !fault.is_of_fleet());
    assert_eq!(never, [], "kinds of faults that were never injected");
}

#[test]
fn no_fleet_breaks_a_promise_and_all_its_faults_are_injected() {
    let counts = run_clean(simulate_fleet, volume(30, 300));
    let never = never_injected(&counts, Fault::is_of_fleet);
    assert_eq!(never, [], "kinds of faults that were never injected");
}

/// Runs seeds that must break no promise, and returns the faults that were injected.
fn run_clean(simulate: Simulate, seeds: u64) -> Counts {
    let outcomes = run(simulate, 0..seeds, None, |_, outcome| outcome.violation.is_some());
    let mut counts = Counts::default();
    for (seed, outcome) in &outcomes {
        assert_eq!(outcome.violation, None, "seed {seed}");
        counts.add_all(&outcome.counts);
    }
    assert_eq!(outcomes.len() as u64, seeds);
    counts
}

fn never_injected(counts: &Counts, wanted: impl Fn(Fault) -> bool) -> Vec<Fault> {
    let never = counts.iter().filter(|(_, count)| *count == 0);
    never
        .map(|(fault, _)| fault)
        .filter(|fault| wanted(*fault))
        .collect()
}

/// Each of these seeds has shown a fault of redrive once.
#[test]
fn seeds_that_broke_a_promise_once_keep_it() {
    for seed in [1_289, 72_614, 73_533, 83_291, 95_086, 98_426] {
        assert_eq!(simulate(&Options::of(seed), false).violation, None, "seed {seed}");
    }
}

#[test]
fn seed_is_deterministic() {
    for seed in 0..volume(8, 25) {
        let [first, second] = [(), ()].map(|()| simulate(&Options::of(seed), false));
        assert_same(&first.trace, &second.trace, seed);
        assert_eq!(
            (first.counts, first.took),
            (second.counts, second.took),
            "seed {seed}"
        );
    }
}

/// Fails with the steps before and after the first difference.
fn assert_same(first: &[Step], second: &[Step], seed: u64) {
    let same = first.iter().zip(second).take_while(|(one, other)| one == other);
    let at = same.count();
    let around = |steps: &[Step]| steps[at.saturating_sub(12)..steps.len().min(at + 12)].to_vec();
    assert!(
        at == first.len() && at == second.len(),
        "seed {seed} differs at step {at} of {} and {}:\n{:?}\n{:?}",
        first.len(),
        second.len(),
        around(first),
        around(second)
    );
}

#[test]
fn fleet_seed_is_deterministic() {
    for seed in 0..volume(3, 25) {
        let [first, second] = [(), ()].map(|()| simulate_fleet(&Options::of(seed), false));
        assert_same(&first.trace, &second.trace, seed);
        assert_eq!(
            (first.counts, first.took),
            (second.counts, second.took),
            "seed {seed}"
        );
    }
}

/// Returns the simulation that meets a deliberate fault.
fn simulation(sabotage: Sabotage) -> Simulate {
    match sabotage {
        Sabotage::AdoptAnyRow
        | Sabotage::ReadDuringHandOver
        | Sabotage::IgnoreRequest
        | Sabotage::PlanWithoutHysteresis
        | Sabotage::LeaderIgnoresHandOver
        | Sabotage::RequestUnseen => simulate_fleet,
        _ => simulate,
    }
}

/// Returns the promises that a deliberate fault breaks. The oracle must report at least one of them.
fn promises(sabotage: Sabotage) -> &'static [Promise] {
    match sabotage {
        Sabotage::CheckpointEarly => &[Promise::NothingPassed],
        Sabotage::SettleUnconfirmed => &[Promise::NothingPassed, Promise::Order],
        Sabotage::DropWhenFull => &[Promise::NothingPassed, Promise::Order],
        Sabotage::LoseOrder => &[Promise::Order],
        Sabotage::RunAfterVerdict => &[Promise::VerdictKept],
        Sabotage::CountProbes => &[Promise::CallsCounted],
        Sabotage::HoldLoneRecord => &[Promise::CallsCounted],
        Sabotage::LetterWhileOpen => &[Promise::BreakerHolds],
        Sabotage::StartChildrenEarly => &[Promise::Lineage],
        Sabotage::KeepLostLease => &[Promise::Fenced],
        Sabotage::ExpiredIsClosed => &[Promise::NothingPassed, Promise::Lineage],
        Sabotage::TrustSilence => &[Promise::AllSettled],
        Sabotage::TrustMissingIterator => &[Promise::NothingPassed, Promise::Lineage],
        Sabotage::TrustEmptyListing => &[Promise::GoesOn],
        Sabotage::TrustPartialListing => &[Promise::Lineage, Promise::Order, Promise::LossReported],
        Sabotage::TrustRefusal => &[Promise::NoWayBack],
        Sabotage::HideDataLoss => &[Promise::LossReported],
        Sabotage::AdoptAnyRow => &[Promise::Fenced],
        Sabotage::ReadDuringHandOver => &[Promise::Fenced],
        Sabotage::IgnoreRequest => &[Promise::Fenced],
        Sabotage::PlanWithoutHysteresis => &[Promise::Stable],
        Sabotage::LeaderIgnoresHandOver => &[Promise::Fenced],
        Sabotage::RequestUnseen => &[Promise::Renewed],
    }
}

#[test]
fn every_deliberate_fault_is_caught() {
    for sabotage in Sabotage::ALL {
        let expected = promises(sabotage);
        let caught = |violation: &Option<Violation>| {
            violation
                .as_ref()
                .is_some_and(|violation| expected.contains(&violation.promise))
        };
        let seeds = first_seed(sabotage)..1_000;
        let outcomes = run(simulation(sabotage), seeds, Some(sabotage), |_, outcome| {
            caught(&outcome.violation)
        });
        let first = outcomes.iter().find(|(_, outcome)| caught(&outcome.violation));
        let (seed, outcome) = first.unwrap_or_else(|| panic!("no seed catches {sabotage:?}"));
        let violation = outcome.violation.as_ref().expect("the seed breaks a promise");
        println!("{sabotage:?} is caught by seed {seed}: {:?}", violation.promise);
    }
}

#[test]
fn failing_seed_is_minimised_and_still_fails() {
    Sabotage::commit(Some(Sabotage::LoseOrder));
    let options = Options::of(2);
    let violation = simulate(&options, false)
        .violation
        .expect("the seed breaks a promise");
    let (least, outcome) = minimise(&options, &violation, simulate);
    assert_eq!(
        outcome.violation.map(|found| found.promise),
        Some(violation.promise)
    );
    assert!(least.records < 20 && least.without.len() > 20, "{least:?}");
    let again = simulate(&least, false);
    assert_eq!(again.trace, outcome.trace, "the minimised seed replays");
    Sabotage::commit(None);
}
