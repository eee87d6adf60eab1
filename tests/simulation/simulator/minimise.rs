//! Minimises a failing seed: fewer kinds of faults, fewer records.

use super::fault::Fault;
use super::plan::Options;
use super::{Outcome, Violation};

/// Returns the smallest options that still break the same promise, and their outcome. `simulate` runs a seed.
pub fn minimise(
    options: &Options,
    violation: &Violation,
    simulate: fn(&Options, bool) -> Outcome,
) -> (Options, Outcome) {
    let breaks = |options: &Options| {
        let outcome = simulate(options, false);
        let same = outcome
            .violation
            .as_ref()
            .is_some_and(|found| found.promise == violation.promise);
        same.then_some(outcome)
    };
    let mut least = options.clone();
    let mut outcome = simulate(options, false);
    // This also excludes the faults that the seed never injects.
    for &fault in Fault::ALL {
        let mut less = least.clone();
        if less.without.insert(fault)
            && let Some(found) = breaks(&less)
        {
            (least, outcome) = (less, found);
        }
    }
    let mut step = outcome.records as usize;
    least.records = least.records.min(step);
    while step > 0 {
        let mut less = least.clone();
        less.records = less.records.saturating_sub(step);
        match breaks(&less) {
            Some(found) if less.records < least.records => (least, outcome) = (less, found),
            _ => step /= 2,
        }
    }
    (least, outcome)
}
