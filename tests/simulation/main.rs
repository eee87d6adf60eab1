//! The real consumer in a simulated world, under faults of every kind: an oracle asks at every step whether
//! a promise is broken. The command `simulate` runs more seeds than fit in a test.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use redrive::Sabotage;

use simulator::{Counts, Fault, Options, Outcome, Promise, Violation, minimise, simulate};

/// Returns how many seeds a test runs: `usual` shows the property, `large` is chosen by `REDRIVE_TEST_LARGE=1`.
fn volume(usual: u64, large: u64) -> u64 {
    match std::env::var("REDRIVE_TEST_LARGE").is_ok_and(|value| value == "1") {
        true => large,
        false => usual,
    }
}

/// The seed at which the search for a deliberate fault begins. Few seeds meet some faults, and a build without optimization
/// takes a second for each.
fn first_seed(sabotage: Sabotage) -> u64 {
    match sabotage {
        Sabotage::HideDataLoss => 60,
        _ => 0,
    }
}

/// Runs seeds on all cores until `enough` says so of what they came to, or there are no more.
fn run(
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
                .expect("no panic while locked")
                .push((seed, outcome));
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let mut outcomes = outcomes.into_inner().expect("no panic while locked");
    outcomes.sort_by_key(|(seed, _)| *seed);
    outcomes
}

#[test]
fn no_seed_breaks_a_promise_and_every_kind_of_fault_is_met() {
    let seeds = volume(200, 300);
    let outcomes = run(0..seeds, None, |_, outcome| outcome.violation.is_some());
    let mut counts = Counts::default();
    for (seed, outcome) in &outcomes {
        assert_eq!(outcome.violation, None, "seed {seed}");
        counts.add_all(&outcome.counts);
    }
    assert_eq!(outcomes.len() as u64, seeds);
    let never: Vec<Fault> = counts
        .iter()
        .filter(|(_, count)| *count == 0)
        .map(|(fault, _)| fault)
        .collect();
    assert_eq!(never, [], "of these none was injected");
}

#[test]
fn a_seed_does_the_same_each_time() {
    for seed in 0..volume(8, 25) {
        let [first, second] = [(), ()].map(|()| simulate(&Options::of(seed), false));
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert_eq!(
            (first.counts, first.took),
            (second.counts, second.took),
            "seed {seed}"
        );
    }
}

/// What each deliberate fault must be seen by, among others perhaps.
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
        let outcomes = run(first_seed(sabotage)..1_000, Some(sabotage), |_, outcome| {
            caught(&outcome.violation)
        });
        let first = outcomes.iter().find(|(_, outcome)| caught(&outcome.violation));
        let (seed, outcome) = first.unwrap_or_else(|| panic!("{sabotage:?} is not caught"));
        let violation = outcome.violation.as_ref().expect("caught");
        println!("{sabotage:?} is caught by seed {seed}: {:?}", violation.promise);
    }
}

#[test]
fn a_failing_seed_is_made_smaller_and_still_fails() {
    Sabotage::commit(Some(Sabotage::LoseOrder));
    let options = Options::of(2);
    let violation = simulate(&options, false).violation.expect("caught");
    let (least, outcome) = minimise(&options, &violation);
    assert_eq!(
        outcome.violation.map(|found| found.promise),
        Some(violation.promise)
    );
    assert!(least.records < 20 && least.without.len() > 20, "{least:?}");
    let again = simulate(&least, false);
    assert_eq!(again.trace, outcome.trace, "it replays");
    Sabotage::commit(None);
}
