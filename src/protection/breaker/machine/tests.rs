use proptest::prelude::*;
use rand::SeedableRng;

use crate::protection::CircuitBreaker;
use crate::protection::breaker::machine::*;

/// The hashes of one record and its key.
const ONE: Hashes = Hashes { record: 1, key: 1 };

/// Fails a record that has not failed before.
fn fails(machine: &mut Machine, now: Instant, key: Option<u64>, successes: u64) -> Option<Change> {
    static RECORDS: AtomicU64 = AtomicU64::new(0);
    let record = RECORDS.fetch_add(1, Ordering::Relaxed);
    machine.failed(now, record, key, successes)
}

fn machine() -> Machine {
    Machine::new(CircuitBreaker::builder().settings, SmallRng::seed_from_u64(1))
}

fn opened(change: Option<Change>) -> bool {
    matches!(change, Some(Change::Opened { .. }))
}

/// Opens the breaker, and waits until its pause is over.
fn half_open(machine: &mut Machine, now: Instant) -> Instant {
    assert!(opened((0..5).find_map(|key| fails(machine, now, Some(key), 0))));
    let Phase::Open { until } = machine.phase else {
        panic!("{machine:?}")
    };
    assert_eq!(machine.tick(until, 0), Some(Change::HalfOpened));
    until
}

#[test]
fn five_keys_in_a_row_open_it_and_one_key_does_not() {
    let now = Instant::now();
    let mut one = machine();
    assert!((0..19).all(|_| fails(&mut one, now, Some(7), 0).is_none()));
    let mut five = machine();
    assert!((0..4).all(|key| fails(&mut five, now, Some(key), 0).is_none()));
    assert!(opened(fails(&mut five, now, Some(4), 0)));
}

#[test]
fn those_beside_whom_others_succeed_do_not_make_a_row() {
    let now = Instant::now();
    let mut machine = machine();
    assert!((0..19).all(|_| fails(&mut machine, now, None, 0).is_none()));
}

#[test]
fn a_success_between_begins_the_row_anew() {
    let now = Instant::now();
    let mut machine = machine();
    assert!((0..4).all(|key| fails(&mut machine, now, Some(key), 0).is_none()));
    assert!((4..8).all(|key| fails(&mut machine, now, Some(key), 100).is_none()));
    assert!(opened(fails(&mut machine, now, Some(8), 100)));
}

#[test]
fn half_of_twenty_attempts_open_it_and_fewer_do_not() {
    let now = Instant::now();
    let mut machine = machine();
    // One success before every failure.
    assert!((1..=9).all(|n| fails(&mut machine, now, Some(n), n).is_none()));
    assert!(opened(fails(&mut machine, now, Some(10), 10)));
}

#[test]
fn what_was_long_ago_does_not_count() {
    let start = Instant::now();
    let mut machine = machine();
    for n in 0..1_000 {
        let now = start + Duration::from_secs(n);
        assert_eq!(
            fails(&mut machine, now, Some(7), 0),
            None,
            "one a second is never twenty in ten"
        );
    }
}

#[test]
fn the_majority_of_the_probes_decides() {
    for (failures, closes) in [(0, true), (2, true), (3, false), (5, false)] {
        let mut machine = machine();
        let now = half_open(&mut machine, Instant::now());
        let rounds: Vec<Round> = std::iter::from_fn(|| machine.probe()).collect();
        assert_eq!(rounds.len(), 5);
        let mut changes = rounds.iter().enumerate().filter_map(|(index, &round)| {
            let proof = if index < failures {
                Proof::Fails
            } else {
                Proof::Works
            };
            machine.proved(now, round, proof, ONE, 0)
        });
        let change = changes.next();
        assert_eq!(
            matches!(change, Some(Change::Closed { .. })),
            closes,
            "{failures}: {change:?}"
        );
        assert_eq!(opened(change), !closes);
        assert_eq!(changes.next(), None, "a round decides once");
    }
}

#[test]
fn a_probe_that_shows_nothing_is_made_again() {
    let mut machine = machine();
    let now = half_open(&mut machine, Instant::now());
    for _ in 0..100 {
        let round = machine.probe().expect("a probe is left");
        assert_eq!(machine.proved(now, round, Proof::Nothing, ONE, 0), None);
    }
}

#[test]
fn a_round_in_which_nothing_was_shown_is_followed_by_another() {
    let mut machine = machine();
    let now = half_open(&mut machine, Instant::now());
    let round = machine.probe().expect("a probe is left");
    machine.proved(now, round, Proof::Nothing, ONE, 0);
    let over = machine.next_tick().expect("the round ends");
    assert_eq!(machine.tick(over, 0), None);
    let next = machine.round().expect("the same record may probe again");
    assert_ne!(next, round);
    assert_eq!(machine.next_tick(), None, "no probe has ended in it yet");
}

#[test]
fn few_keys_are_no_outage_however_often_they_fail() {
    let now = Instant::now();
    let mut machine = Machine::new(
        CircuitBreaker::builder()
            .keys_in_a_row(100)
            .min_attempts(20)
            .settings,
        SmallRng::seed_from_u64(1),
    );
    assert!(machine.is_narrow(now) && machine.streak.is_empty());
    for key in 0..19 {
        fails(&mut machine, now, Some(key), 1_000);
        fails(&mut machine, now, None, 1_000);
    }
    assert!(machine.is_narrow(now) && !machine.streak.is_empty());
    fails(&mut machine, now, Some(19), 1_000);
    assert!(!machine.is_narrow(now));
    fails(&mut machine, now, None, 1_001);
    assert!(
        machine.is_narrow(now) && machine.streak.is_empty(),
        "a success in between clears them"
    );
}

/// Nineteen keys were given up or fixed long ago: the one that still fails is not an outage.
#[test]
fn what_failed_long_ago_makes_no_outage_of_one_key() {
    let mut now = Instant::now();
    let mut machine = Machine::new(
        CircuitBreaker::builder()
            .keys_in_a_row(100)
            .min_attempts(20)
            .settings,
        SmallRng::seed_from_u64(1),
    );
    // Enough records have succeeded before to keep the breaker closed.
    fails(&mut machine, now, Some(0), 1_000_000);
    for key in 0..20 {
        fails(&mut machine, now, Some(key), 1_000_000);
    }
    for _ in 0..15 {
        assert!(!machine.is_narrow(now));
        now += Duration::from_secs(60);
        fails(&mut machine, now, Some(7), 1_000_000);
    }
    assert!(machine.is_narrow(now) && !machine.streak.is_empty());
    // Keys that the breaker does not know yet.
    for key in 100..119 {
        fails(&mut machine, now, Some(key), 1_000_000);
    }
    assert!(!machine.is_narrow(now));
}

#[test]
fn what_a_probe_shows_of_a_key_counts_as_well() {
    let mut machine = machine();
    let mut now = half_open(&mut machine, Instant::now());
    // Five failed keys opened the breaker; three failed probes open it again.
    for key in 5..20 {
        let round = machine.probe().expect("a probe is left");
        if opened(machine.proved(now, round, Proof::Fails, Hashes { record: key, key }, 0)) {
            now = machine.next_tick().expect("it is open");
            machine.tick(now, 0);
        }
    }
    assert!(!machine.is_narrow(now));
    let round = machine.probe().expect("a probe is left");
    machine.proved(now, round, Proof::Works, ONE, 1);
    assert!(machine.is_narrow(now));
}

#[test]
fn it_has_been_closed_for_as_long_as_it_has() {
    let mut machine = machine();
    let start = Instant::now();
    assert!(machine.is_closed_for(start, Duration::from_secs(3_600)));
    let now = half_open(&mut machine, start);
    assert!(!machine.is_closed_for(now, Duration::ZERO));
    for _ in 0..3 {
        let round = machine.probe().expect("a probe is left");
        machine.proved(now, round, Proof::Works, ONE, 3);
    }
    let later = now + Duration::from_secs(5);
    assert!(machine.is_closed_for(later, Duration::from_secs(5)));
    assert!(!machine.is_closed_for(later, Duration::from_secs(6)));
}

/// Fails a round of probes, and waits until the pause is over.
fn fail_round(machine: &mut Machine, now: Instant) -> Instant {
    let change = (0..3).find_map(|_| {
        let round = machine.probe().expect("a probe is left");
        machine.proved(now, round, Proof::Fails, ONE, 0)
    });
    let Some(Change::Opened {
        failures,
        attempts,
        pause,
    }) = change
    else {
        panic!("{change:?}")
    };
    assert_eq!((failures, attempts), (3, 3));
    machine.tick(now + pause, 0);
    now + pause
}

fn pause(change: Option<Change>) -> f64 {
    match change {
        Some(Change::Opened { pause, .. }) => pause.as_secs_f64(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn pause_shrinks_after_closing_and_resets_if_it_stays_closed() {
    for (stays_closed, pauses) in [(0, 4.0..=8.0), (9, 4.0..=8.0), (10, 0.5..=1.0)] {
        let mut machine = machine();
        let mut now = half_open(&mut machine, Instant::now());
        // The breaker has opened six times so far, so the seventh pause would be a minute.
        for _ in 0..5 {
            now = fail_round(&mut machine, now);
        }
        for _ in 0..3 {
            let round = machine.probe().expect("a probe is left");
            machine.proved(now, round, Proof::Works, ONE, 3);
        }
        assert!(matches!(machine.phase(), Phase::Closed));
        let now = now + Duration::from_secs(stays_closed);
        let pause = pause((10..15).find_map(|key| fails(&mut machine, now, Some(key), 3)));
        assert!(pauses.contains(&pause), "closed for {stays_closed} s: {pause}");
    }
}

#[test]
fn a_round_goes_on_until_its_time_is_over() {
    let mut machine = machine();
    let now = half_open(&mut machine, Instant::now());
    let round = machine.probe().expect("a probe is left");
    machine.proved(now, round, Proof::Works, ONE, 1);
    assert_eq!(machine.tick(now + Duration::from_secs(9), 1), None);
    assert_eq!(machine.next_tick(), Some(now + Duration::from_secs(10)));
    // As many failures as successes do not close the breaker.
    let round = machine.probe().expect("a probe is left");
    machine.proved(now, round, Proof::Fails, ONE, 1);
    let over = machine.tick(now + Duration::from_secs(10), 1);
    assert!(
        matches!(
            over,
            Some(Change::Opened {
                failures: 1,
                attempts: 2,
                ..
            })
        ),
        "{over:?}"
    );
}

#[test]
fn a_probe_of_a_round_that_is_over_decides_nothing() {
    let mut machine = machine();
    let now = half_open(&mut machine, Instant::now());
    let late = machine.probe().expect("a probe is left");
    let now = fail_round(&mut machine, now);
    for _ in 0..5 {
        assert_eq!(machine.proved(now, late, Proof::Works, ONE, 1), None);
    }
    assert!(matches!(machine.phase(), Phase::HalfOpen(_)));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_is_given_back() {
    let breaker = CircuitBreaker::builder().keys_in_a_row(1).build().expect("valid");
    let record = crate::Record::builder("s", "shardId-0".into(), 1.into()).build();
    assert!(opened(breaker.failed(&record, false)));
    assert!(breaker.probe().is_none(), "not while it is open");
    breaker.change().await;
    assert_eq!(breaker.tick(), Some(Change::HalfOpened));
    let probes: Vec<_> = std::iter::from_fn(|| breaker.probe()).collect();
    assert_eq!(probes.len(), 5);
    assert!(probes.iter().all(|probe| Some(probe.round()) != breaker.round()));
    let round = probes[0].round();
    drop(probes);
    assert_eq!(breaker.round(), Some(round));
    let probe = breaker.probe().expect("a dropped probe can be made again");
    probe.showed(Proof::Works, &record);
    let left: Vec<_> = std::iter::from_fn(|| breaker.probe()).collect();
    assert_eq!(left.len(), 4, "one was used");
}

#[test]
fn too_few_probes_decide_when_their_time_is_over() {
    let mut machine = machine();
    let now = half_open(&mut machine, Instant::now());
    assert_eq!(
        machine.next_tick(),
        None,
        "without a probe there is nothing to decide"
    );
    let round = machine.probe().expect("five probes are left");
    assert_eq!(machine.proved(now, round, Proof::Works, ONE, 1), None);
    let over = machine.next_tick().expect("the round ends");
    assert!(matches!(machine.tick(over, 1), Some(Change::Closed { .. })));
}

#[test]
fn pauses_grow_while_it_stays_sick_and_never_past_their_cap() {
    let mut machine = machine();
    let mut now = half_open(&mut machine, Instant::now());
    let mut pauses = Vec::new();
    for _ in 0..20 {
        let change = (0..3).find_map(|_| {
            let round = machine.probe().expect("a probe is left");
            machine.proved(now, round, Proof::Fails, ONE, 0)
        });
        let Some(Change::Opened { pause, .. }) = change else {
            panic!("{change:?}")
        };
        pauses.push(pause);
        now += pause;
        assert_eq!(machine.tick(now, 0), Some(Change::HalfOpened));
    }
    assert!(pauses[0] >= Duration::from_secs(1) && pauses[0] <= Duration::from_secs(2));
    assert!(
        pauses[10..]
            .iter()
            .all(|pause| (30.0..=60.0).contains(&pause.as_secs_f64()))
    );
}

#[derive(Debug, Clone)]
enum Move {
    Failed(u64),
    Succeeded,
    Pass(u64),
    Probe,
    Proved(Proof),
}

proptest! {
    /// In every sequence of moves: the number of probes is limited, each change matches the phase, and the
    /// breaker closes once the dependency works again.
    #[test]
    fn it_never_gets_stuck(moves in prop::collection::vec(
        prop_oneof![
            3 => (0u64..8).prop_map(Move::Failed),
            1 => Just(Move::Succeeded),
            2 => (0u64..30_000).prop_map(Move::Pass),
            3 => Just(Move::Probe),
            3 => prop_oneof![Just(Proof::Works), Just(Proof::Fails), Just(Proof::Nothing)]
                .prop_map(Move::Proved),
        ],
        0..200,
    )) {
        let mut machine = machine();
        let (mut now, mut successes, mut running) = (Instant::now(), 0, Vec::new());
        for step in moves {
            let before = matches!(machine.phase, Phase::Closed);
            let change = match step {
                Move::Failed(key) => fails(&mut machine, now, Some(key), successes),
                Move::Succeeded => {
                    successes += 1;
                    None
                }
                Move::Pass(millis) => {
                    now += Duration::from_millis(millis);
                    machine.tick(now, successes)
                }
                Move::Probe => {
                    running.extend(machine.probe());
                    None
                }
                Move::Proved(proof) => match running.pop() {
                    Some(round) => machine.proved(now, round, proof, ONE, successes),
                    None => None,
                },
            };
            match (change, machine.phase) {
                (Some(Change::Opened { .. }), Phase::Open { until }) => prop_assert!(until > now),
                (Some(Change::HalfOpened), Phase::HalfOpen(_)) => {}
                (Some(Change::Closed { .. }), Phase::Closed) => {}
                (None, phase) => prop_assert_eq!(before, matches!(phase, Phase::Closed)),
                (change, phase) => prop_assert!(false, "{change:?} in {phase:?}"),
            }
            if let Phase::HalfOpen(probing) = machine.phase {
                prop_assert!(probing.running + probing.succeeded + probing.failed <= 5);
            }
        }
        // The dependency works again: running probes end, then one probe at a time succeeds.
        for round in running {
            machine.proved(now, round, Proof::Works, ONE, successes);
        }
        for _ in 0..10 {
            if let Some(at) = machine.next_tick() {
                now = now.max(at);
            }
            machine.tick(now, successes);
            if let Some(round) = machine.probe() {
                machine.proved(now, round, Proof::Works, ONE, successes);
            }
        }
        prop_assert!(matches!(machine.phase, Phase::Closed), "{:?}", machine);
    }
}

/// A single record is no outage, however often it is attempted.
#[tokio::test(start_paused = true)]
async fn one_record_that_fails_again_and_again_opens_nothing() {
    let mut machine = machine();
    let now = Instant::now();
    assert!((0..1_000).all(|_| machine.failed(now, 7, Some(7), 0).is_none()));
    assert!(!machine.has_failed_beside(now, 7, 0));
    assert!(opened(machine.failed(now, 8, Some(8), 0)));
}

/// A record that fails while other records succeed is no sign of an outage.
#[tokio::test(start_paused = true)]
async fn failure_of_another_record_since_a_success_suggests_outage() {
    let mut machine = machine();
    let now = Instant::now();
    machine.failed(now, 1, None, 10);
    assert!(!machine.has_failed_beside(now, 2, 10));
    machine.failed(now, 3, Some(3), 10);
    assert!(machine.has_failed_beside(now, 2, 10));
    assert!(!machine.has_failed_beside(now, 3, 10), "no other has failed");
    assert!(!machine.has_failed_beside(now, 2, 11), "a record has succeeded");
}
