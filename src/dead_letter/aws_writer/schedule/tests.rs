use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const TRIES: u32 = 3;
/// The limits of Kinesis.
const LIMITS: Limits = Limits {
    entries: 500,
    bytes: 10 * 1024 * 1024,
};

fn schedule<'a>(keys: impl IntoIterator<Item = &'a str>) -> Schedule {
    sized(keys.into_iter().map(|key| (key, 1)))
}

fn sized<'a>(entries: impl IntoIterator<Item = (&'a str, usize)>) -> Schedule {
    Schedule::new(
        entries
            .into_iter()
            .map(|(key, bytes)| Entry {
                key: key.to_owned(),
                data: Bytes::from(vec![0; bytes]),
                bytes: (bytes + key.len()) as u64,
                deduplication_id: String::new(),
                place: String::new(),
            })
            .collect(),
        LIMITS,
    )
}

fn keys(schedule: &Schedule, request: &Request) -> Vec<String> {
    schedule.entries(request).map(|entry| entry.key.clone()).collect()
}

fn ok() -> Result<Receipt, SharedError> {
    Ok(Receipt::new("there"))
}

fn failed() -> SharedError {
    Arc::from(crate::BoxError::from("throttled"))
}

fn refused(entry: &Entry) -> SinkError {
    entry.refused(0, "too large")
}

/// Returns one character for each result: `c`onfirmed, `u`navailable, `r`efused or `b`ehind.
fn signs(schedule: Schedule) -> String {
    schedule
        .into_results()
        .iter()
        .map(|result| match result {
            Ok(_) => 'c',
            Err(SinkError::Unavailable(_)) => 'u',
            Err(SinkError::Refused { .. }) => 'r',
            Err(SinkError::Behind) => 'b',
        })
        .collect()
}

#[test]
fn request_has_one_entry_per_key_until_it_is_confirmed() {
    let mut schedule = schedule(["a", "b", "a", "a", "c"]);
    let first = schedule.next_request().expect("three keys");
    assert_eq!(keys(&schedule, &first), ["a", "b", "c"]);
    assert!(schedule.next_request().is_none(), "not before an answer");
    schedule.answered(first, vec![ok(), ok(), ok()], TRIES);
    let second = schedule.next_request().expect("the second of a");
    assert_eq!(keys(&schedule, &second), ["a"]);
    schedule.answered(second, vec![ok()], TRIES);
    let third = schedule.next_request().expect("the third of a");
    schedule.answered(third, vec![ok()], TRIES);
    assert!(schedule.next_request().is_none() && schedule.wake().is_none());
    assert_eq!(signs(schedule), "ccccc");
}

#[test]
fn failed_entry_is_retried_alone_then_blocks_its_key() {
    let mut schedule = schedule(["a", "b", "a"]);
    let mut sent = Vec::new();
    loop {
        let Some(request) = schedule.next_request() else {
            match schedule.wake() {
                Some(_) => continue,
                None => break,
            }
        };
        sent.push(keys(&schedule, &request).concat());
        let answers = keys(&schedule, &request)
            .iter()
            .map(|key| if key == "a" { Err(failed()) } else { ok() })
            .collect();
        schedule.answered(request, answers, TRIES);
    }
    assert_eq!(sent, ["ab", "a", "a"]);
    assert_eq!(signs(schedule), "ucb");
}

#[test]
fn tries_are_counted_for_each_letter_of_a_key() {
    let mut schedule = schedule(["a", "a"]);
    for _ in 0..2 {
        for answer in [Err(failed()), Err(failed()), ok()] {
            let request = schedule.next_request().expect("a letter is left");
            schedule.answered(request, vec![answer], TRIES);
            schedule.wake();
        }
    }
    assert_eq!(signs(schedule), "cc");
}

#[test]
fn a_request_holds_500_entries_and_10_mib_with_keys() {
    let names: Vec<String> = (0..501).map(|i| i.to_string()).collect();
    let mut many = schedule(names.iter().map(String::as_str));
    assert_eq!(many.next_request().expect("ready").len(), 500);
    assert_eq!(many.next_request().expect("one more").len(), 1);

    // Five entries of 2 MiB with their keys are exactly 10 MiB. With one more byte, one entry has to wait.
    let mib2 = 2 * 1024 * 1024;
    let mut full = sized(["a", "b", "c", "d", "e"].map(|key| (key, mib2 - 1)));
    assert_eq!(full.next_request().expect("ready").len(), 5);
    let mut over = sized([
        ("a", mib2),
        ("b", mib2 - 1),
        ("c", mib2 - 1),
        ("d", mib2 - 1),
        ("e", mib2 - 1),
    ]);
    assert_eq!(over.next_request().expect("ready").len(), 4);
}

#[test]
fn letters_ahead_of_one_refused_leave_and_those_behind_stay() {
    let mut schedule = sized([("a", 1), ("b", 9), ("a", 9), ("a", 1), ("b", 1)]);
    schedule.refuse_larger_than(8);
    let request = schedule.next_request().expect("the first of a");
    assert_eq!(keys(&schedule, &request), ["a"]);
    schedule.answered(request, vec![ok()], TRIES);
    assert!(schedule.next_request().is_none() && schedule.wake().is_none());
    assert_eq!(signs(schedule), "crrbb");
}

#[test]
fn a_letter_too_large_stays_behind_one_that_failed() {
    // If it were refused, it would go to the fallback sink and be readable before the one ahead of it.
    let mut schedule = sized([("a", 1), ("a", 9)]);
    schedule.refuse_larger_than(8);
    schedule.give_up(&failed());
    assert_eq!(signs(schedule), "ub");
}

#[test]
fn one_poisoned_entry_of_500_is_found_in_a_few_calls() {
    let names: Vec<String> = (0..500).map(|i| i.to_string()).collect();
    let mut schedule = schedule(names.iter().map(String::as_str));
    let mut calls = 0;
    while let Some(request) = schedule.next_request() {
        calls += 1;
        if !keys(&schedule, &request).contains(&"321".to_owned()) {
            let answers = (0..request.len()).map(|_| ok()).collect();
            schedule.answered(request, answers, TRIES);
        } else if request.len() > 1 {
            schedule.split(request);
        } else {
            schedule.refuse(request, refused);
        }
    }
    assert!(calls <= 20, "{calls} calls");
    let signs = signs(schedule);
    assert_eq!(signs.find('r'), Some(321));
    assert_eq!(signs.matches('c').count(), 499);
}

#[test]
fn giving_up_leaves_what_is_confirmed() {
    let mut schedule = schedule(["a", "b", "a", "c", "a"]);
    let request = schedule.next_request().expect("ready");
    schedule.answered(request, vec![ok(), Err(failed()), ok()], TRIES);
    schedule.give_up(&failed());
    assert!(schedule.next_request().is_none() && schedule.wake().is_none());
    assert_eq!(signs(schedule), "cuucb");
}

/// The outcome of a call.
#[derive(Debug, Clone)]
enum Call {
    /// The service answers. Each entry, in turn, is written or not.
    Answered(Vec<bool>),
    /// The request is not answered. Its entries are written nevertheless, or not.
    Lost(bool),
    Refused,
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let call = prop_oneof![
        6 => prop::collection::vec(prop::bool::weighted(0.8), 1..12).prop_map(Call::Answered),
        1 => any::<bool>().prop_map(Call::Lost),
        1 => Just(Call::Refused),
    ];
    prop::collection::vec(call, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn order_per_key_is_kept_and_nothing_is_confirmed_falsely(
        entries in prop::collection::vec((0usize..6, 0usize..79_000), 0..40),
        limit in 1_000_000u64..6_000_000,
        calls in calls(),
    ) {
        let names = ["a", "b", "c", "d", "e", "f"];
        // The length identifies the dead letter.
        let zeros = Bytes::from_static(&[0; 64 * 80_000]);
        let mut schedule = Schedule::new(entries.iter().enumerate().map(|(number, &(key, size))| Entry {
            key: names[key].to_owned(),
            data: zeros.slice(..size * 64 + number),
            bytes: (size * 64 + number + names[key].len()) as u64,
            deduplication_id: String::new(),
                place: String::new(),
        }).collect(), LIMITS);
        schedule.refuse_larger_than(limit);
        let number_of = |entry: &Entry| entry.data.len() % 64;

        // The content of the stream, in order. It may contain a dead letter twice.
        let mut stream: Vec<usize> = Vec::new();
        let mut calls = calls.into_iter();
        for round in 0.. {
            prop_assert!(round < 10_000, "the put must end");
            let Some(request) = schedule.next_request() else {
                match schedule.wake() {
                    Some(_) => continue,
                    None => break,
                }
            };
            let sent: Vec<usize> = schedule.entries(&request).map(number_of).collect();
            let bytes: u64 = schedule.entries(&request).map(|entry| entry.bytes).sum();
            let distinct: BTreeSet<usize> = sent.iter().map(|&number| entries[number].0).collect();
            prop_assert_eq!(distinct.len(), request.len(), "one entry of a key");
            prop_assert!(request.len() == 1 || bytes <= LIMITS.bytes);
            match calls.next().unwrap_or(Call::Answered(vec![true])) {
                Call::Answered(written) => {
                    let answers: Vec<_> = sent.iter().zip(written.iter().cycle()).map(|(&number, &written)| {
                        if written {
                            stream.push(number);
                            ok()
                        } else {
                            Err(failed())
                        }
                    }).collect();
                    schedule.answered(request, answers, TRIES);
                }
                Call::Lost(written) => {
                    stream.extend(sent.iter().filter(|_| written));
                    schedule.put_back(request);
                }
                Call::Refused if request.len() > 1 => schedule.split(request),
                Call::Refused => schedule.refuse(request, refused),
            }
        }

        let signs = signs(schedule);
        prop_assert_eq!(signs.len(), entries.len());
        for key in 0..names.len() {
            let own: Vec<usize> = (0..entries.len()).filter(|&number| entries[number].0 == key).collect();
            let ends: String = own.iter().map(|&number| &signs[number..=number]).collect();
            // First the confirmed ones, then at most one with an error of its own, then those behind it.
            let rest = ends.trim_start_matches('c').trim_start_matches(['u', 'r']);
            prop_assert!(rest.chars().all(|sign| sign == 'b'), "{}", ends);
            prop_assert!(ends.matches(['u', 'r']).count() <= 1, "{}", ends);
            for &number in &own {
                if signs[number..=number] == *"c" {
                    prop_assert!(stream.contains(&number));
                }
                if signs[number..=number] == *"b" {
                    prop_assert!(!stream.contains(&number));
                }
            }
            // A reader that skips what it has seen reads the dead letters in order.
            let mut read: Vec<usize> = stream.iter().copied().filter(|number| own.contains(number)).collect();
            let mut seen = BTreeSet::new();
            read.retain(|&number| seen.insert(number));
            prop_assert!(read.is_sorted());
        }
    }
}
