//! The breaker's state machine: when to pause and when to resume. It has no lock, clock or task.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::Settings;
use crate::protection::sliding_window::{SlidingWindow, WindowedGrowth};
use crate::protection::{Jitter, after};

/// The number of a round of probes, unique within the process.
pub(crate) type Round = u64;

/// The time within which every record that waits in an outage has been a probe, however long the pauses are.
const LATELY: Duration = Duration::from_secs(15 * 60);

static ROUNDS: AtomicU64 = AtomicU64::new(1);

#[derive(Debug)]
pub(super) struct Machine {
    settings: Settings,
    phase: Phase,
    failures: SlidingWindow,
    successes: WindowedGrowth,
    /// The keys whose records failed since the last success, each with the time of its last failure. Only as
    /// many of the latest keys are kept as decisions need.
    streak: Vec<(u64, Instant)>,
    /// Records that failed since the last success, except those that failed while other records succeeded.
    failing: Pair,
    /// Records that failed within the window.
    failed_lately: Pair,
    /// The exponent of the next pause: the number of openings, halved each time that the breaker closes, and
    /// 0 once it has stayed closed for a window.
    openings: u32,
    opened: Option<Instant>,
    closed: Option<Instant>,
    rng: SmallRng,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Phase {
    Closed,
    Open { until: Instant },
    HalfOpen(Probing),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Probing {
    round: Round,
    since: Instant,
    running: u32,
    succeeded: u32,
    failed: u32,
    /// True once a probe has ended, whatever it showed.
    has_shown: bool,
}

impl Probing {
    fn begin(now: Instant) -> Self {
        Probing {
            round: ROUNDS.fetch_add(1, Ordering::Relaxed),
            since: now,
            running: 0,
            succeeded: 0,
            failed: 0,
            has_shown: false,
        }
    }
}

/// The last two different records that failed, each with the time of its last failure.
#[derive(Debug, Default)]
struct Pair([Option<(u64, Instant)>; 2]);

impl Pair {
    fn note(&mut self, record: u64, now: Instant) {
        let is_same = |known: &&mut Option<(u64, Instant)>| known.is_some_and(|(known, _)| known == record);
        let place = match self.0.iter_mut().find(is_same) {
            Some(known) => Some(known),
            None => self.0.iter_mut().min_by_key(|known| known.map(|(_, at)| at)),
        };
        if let Some(place) = place {
            *place = Some((record, now));
        }
    }

    fn has_other_than(&self, record: u64) -> bool {
        self.0.iter().flatten().any(|(known, _)| *known != record)
    }

    /// Returns true if both records failed since this time. `None` stands for any time.
    fn are_two_since(&self, time: Option<Instant>) -> bool {
        let since = |known: &Option<(u64, Instant)>| known.is_some_and(|(_, at)| Some(at) >= time);
        self.0.iter().all(since)
    }
}

/// The hashes that identify a record and its partition key.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Hashes {
    pub(super) record: u64,
    pub(super) key: u64,
}

/// A change of the breaker's state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Change {
    Opened {
        failures: u64,
        attempts: u64,
        pause: Duration,
    },
    HalfOpened,
    Closed {
        after: Duration,
    },
}

/// The result of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    Works,
    Fails,
    /// The failure was the record's own fault, or the attempt was given up.
    Nothing,
}

impl Machine {
    pub(super) fn new(settings: Settings, rng: SmallRng) -> Self {
        Machine {
            phase: Phase::Closed,
            failures: SlidingWindow::new(settings.window),
            successes: WindowedGrowth::new(settings.window),
            streak: Vec::new(),
            failing: Pair::default(),
            failed_lately: Pair::default(),
            openings: 0,
            opened: None,
            closed: None,
            rng,
            settings,
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Counts a failed attempt that began while the breaker was closed. `key` is the record's key, or `None`
    /// if other records have succeeded since this record first failed. `successes` is the total of all
    /// successes.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        record: u64,
        key: Option<u64>,
        successes: u64,
    ) -> Option<Change> {
        if !matches!(self.phase, Phase::Closed) {
            return None;
        }
        self.observe(now, successes);
        if key.is_some() {
            self.failing.note(record, now);
        }
        self.blame(now, key);
        self.failed_lately.note(record, now);
        self.failures.add(now, 1);
        let failures = self.failures.sum(now);
        let attempts = failures + self.successes.sum(now);
        // A record that fails alone is no outage, however often it is attempted.
        let are_two = self
            .failed_lately
            .are_two_since(now.checked_sub(self.settings.window));
        let too_many = are_two
            && attempts >= self.settings.attempts
            && failures as f64 >= self.settings.share * attempts as f64;
        (too_many || self.streak.len() >= self.settings.in_a_row).then(|| self.open(now, failures, attempts))
    }

    fn observe(&mut self, now: Instant, successes: u64) {
        if self.successes.observe(now, successes) > 0 {
            self.works();
        }
    }

    /// Notes that a record has succeeded, so that earlier failures no longer suggest an outage.
    fn works(&mut self) {
        self.streak.clear();
        self.failing = Pair::default();
    }

    fn blame(&mut self, now: Instant, key: Option<u64>) {
        let Some(key) = key else { return };
        let enough = self.settings.in_a_row.max(self.enough_keys());
        if let Some((_, at)) = self.streak.iter_mut().find(|(known, _)| *known == key) {
            *at = now;
        } else if self.streak.len() < enough {
            self.streak.push((key, now));
        } else if let Some(oldest) = self.streak.iter_mut().min_by_key(|(_, at)| *at) {
            *oldest = (key, now);
        }
    }

    /// The number of different keys that tells an outage from a few bad records.
    fn enough_keys(&self) -> usize {
        usize::try_from(self.settings.attempts).unwrap_or(usize::MAX)
    }

    /// Returns true if another record than this one has failed since the last success.
    pub(super) fn has_failed_beside(&mut self, now: Instant, record: u64, successes: u64) -> bool {
        self.observe(now, successes);
        self.failing.has_other_than(record)
    }

    /// Returns true if only a few keys have failed since the last success, not counting failures older than
    /// `LATELY`. Their records may be bad themselves, on a stream where nothing else could succeed. Records
    /// that were given up since do not add up to an outage.
    pub(super) fn is_narrow(&self, now: Instant) -> bool {
        let lately = |(_, at): &&(u64, Instant)| now.saturating_duration_since(*at) < LATELY;
        self.streak.iter().filter(lately).count() < self.enough_keys()
    }

    /// Returns true if the breaker has been closed for at least this time.
    pub(super) fn is_closed_for(&self, now: Instant, time: Duration) -> bool {
        let closed = self
            .closed
            .is_none_or(|closed| now.saturating_duration_since(closed) >= time);
        matches!(self.phase, Phase::Closed) && closed
    }

    fn open(&mut self, now: Instant, failures: u64, attempts: u64) -> Change {
        let stayed_closed = self
            .closed
            .take()
            .is_some_and(|closed| now.saturating_duration_since(closed) >= self.settings.window);
        if stayed_closed {
            self.openings = 0;
        }
        let pause = Jitter::Equal.delay(&self.settings.pause, self.openings, Duration::ZERO, &mut self.rng);
        self.openings = self.openings.saturating_add(1);
        self.opened.get_or_insert(now);
        self.phase = Phase::Open {
            until: after(now, pause),
        };
        Change::Opened {
            failures,
            attempts,
            pause,
        }
    }

    fn close(&mut self, now: Instant, successes: u64) -> Change {
        self.phase = Phase::Closed;
        // Most of the probes succeeded, so the dependency is less sick than before if the breaker opens
        // again.
        self.openings /= 2;
        self.failures.clear();
        self.successes.restart(now, successes);
        self.works();
        self.closed = Some(now);
        let opened = self.opened.take().unwrap_or(now);
        Change::Closed {
            after: now.saturating_duration_since(opened),
        }
    }

    /// Ends a pause or a round of probes whose time is over.
    pub(super) fn tick(&mut self, now: Instant, successes: u64) -> Option<Change> {
        match self.phase {
            Phase::Open { until } if now >= until => {
                self.phase = Phase::HalfOpen(Probing::begin(now));
                Some(Change::HalfOpened)
            }
            // Fewer records came than there are probes: the probes that were made decide.
            Phase::HalfOpen(probing) if self.round_ends().is_some_and(|end| now >= end) => {
                match probing.succeeded.cmp(&probing.failed) {
                    std::cmp::Ordering::Greater => Some(self.close(now, successes)),
                    // The probes showed nothing. The same records may probe again, because there may be no
                    // others.
                    std::cmp::Ordering::Equal if probing.failed == 0 => {
                        self.phase = Phase::HalfOpen(Probing::begin(now));
                        None
                    }
                    _ => Some(self.reopen(now, probing)),
                }
            }
            _ => None,
        }
    }

    fn reopen(&mut self, now: Instant, probing: Probing) -> Change {
        let (failed, succeeded) = (probing.failed.into(), u64::from(probing.succeeded));
        self.open(now, failed, failed + succeeded)
    }

    fn round_ends(&self) -> Option<Instant> {
        match self.phase {
            Phase::HalfOpen(probing) if probing.has_shown => Some(after(probing.since, self.settings.window)),
            _ => None,
        }
    }

    /// Returns when time alone changes the state next.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        match self.phase {
            Phase::Open { until } => Some(until),
            _ => self.round_ends(),
        }
    }

    /// Returns the current round, if a probe is left in it.
    pub(super) fn round(&self) -> Option<Round> {
        match self.phase {
            Phase::HalfOpen(probing) => {
                let used = probing.running + probing.succeeded + probing.failed;
                (used < self.settings.probes).then_some(probing.round)
            }
            _ => None,
        }
    }

    /// Begins a probe, if one is left.
    pub(super) fn probe(&mut self) -> Option<Round> {
        let round = self.round()?;
        if let Phase::HalfOpen(probing) = &mut self.phase {
            probing.running += 1;
        }
        Some(round)
    }

    /// Counts the result of a probe.
    pub(super) fn proved(
        &mut self,
        now: Instant,
        round: Round,
        proof: Proof,
        of: Hashes,
        successes: u64,
    ) -> Option<Change> {
        match proof {
            Proof::Works => self.works(),
            Proof::Fails => {
                self.blame(now, Some(of.key));
                self.failing.note(of.record, now);
            }
            Proof::Nothing => {}
        }
        let probing = match &mut self.phase {
            Phase::HalfOpen(probing) if probing.round == round => probing,
            // The probe's round is over, and was decided without it.
            _ => return None,
        };
        probing.running = probing.running.saturating_sub(1);
        probing.has_shown = true;
        match proof {
            Proof::Works => probing.succeeded += 1,
            Proof::Fails => probing.failed += 1,
            Proof::Nothing => {}
        }
        let probing = *probing;
        let majority = self.settings.probes / 2 + 1;
        if probing.succeeded >= majority {
            Some(self.close(now, successes))
        } else if probing.failed >= majority {
            Some(self.reopen(now, probing))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests;
