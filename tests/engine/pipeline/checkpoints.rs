//! Tests of when a run hands over checkpoints, and of which checkpoint is the last. Time is paused throughout.

use std::future::pending;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use redrive::checkpoint::Checkpoint;
use redrive::pipeline::{Batch, Pipeline};
use redrive::{
    Position, Record, Resilient,
    dead_letter::{self, DeadLetterPolicy},
};
use tokio::time::{Instant, sleep, timeout};

use redrive::testing::Script;
use support::script::record;

const SECOND: Duration = Duration::from_secs(1);
/// Interval between two records. No record settles at a full second.
const EACH: Duration = Duration::from_millis(300);

fn resilient(after: DeadLetterPolicy) -> Resilient<Script> {
    Resilient::builder("billing", Script::default())
        .dead_letters(dead_letter::Memory::new())
        .dead_letter_policy(after)
        .without_guard()
        .build()
        .expect("valid")
}

/// Returns one batch per record, at an interval.
fn spaced(scripts: &[&'static str]) -> impl Stream<Item = Batch> + Unpin + use<> {
    let records: Vec<Record> = (1..)
        .zip(scripts)
        .map(|(number, script)| record(number, &number.to_string(), script))
        .collect();
    let batches = stream::iter(records).then(|record| async {
        sleep(EACH).await;
        Batch::from(vec![record])
    });
    Box::pin(batches)
}

fn position(number: u64) -> Position {
    record(number, "", "").position()
}

/// Runs these records for a minute. Storing the first checkpoint takes `first`, any other takes no time.
/// Returns when each checkpoint was handed over, and the number of its record.
async fn handed_over(scripts: &[&'static str], first: Duration) -> Vec<(Duration, Position)> {
    let (start, calls) = (Instant::now(), Mutex::new(Vec::new()));
    let on_checkpoint = |checkpoint: Checkpoint| {
        let mut calls = calls.lock().expect("no panic");
        calls.push((start.elapsed(), checkpoint.position().clone()));
        let time = if calls.len() == 1 { first } else { Duration::ZERO };
        sleep(time)
    };
    let resilient = resilient(DeadLetterPolicy::Continue);
    let records = spaced(scripts).chain(stream::once(pending()));
    let (pipeline, from) = (Pipeline::default(), Checkpoint::at(Position::TrimHorizon));
    let run = pipeline.run_until(&resilient, Box::pin(records), from, on_checkpoint, pending());
    assert!(timeout(60 * SECOND, run).await.is_err(), "the input has no end");
    calls.into_inner().expect("no panic")
}

#[tokio::test(start_paused = true)]
async fn checkpoint_is_made_once_a_second_if_it_has_moved() {
    let calls = handed_over(&["ok"; 9], Duration::ZERO).await;
    let expected = [(1, 3), (2, 6), (3, 9)];
    assert_eq!(
        calls,
        expected.map(|(at, number)| (at * SECOND, position(number)))
    );
}

#[tokio::test(start_paused = true)]
async fn next_checkpoint_waits_until_the_last_is_stored() {
    let calls = handed_over(&["ok"; 9], 5 * SECOND).await;
    let expected = [(1, 3), (7, 9)];
    assert_eq!(
        calls,
        expected.map(|(at, number)| (at * SECOND, position(number)))
    );
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_makes_a_checkpoint_urgent() {
    for (scripts, expected) in [
        (["bad", "ok"], [(EACH, 1), (EACH + SECOND, 2)]),
        (["bad", "bad"], [(EACH, 1), (2 * EACH, 2)]),
    ] {
        let calls = handed_over(&scripts, Duration::ZERO).await;
        let expected = expected.map(|(at, number)| (at, position(number)));
        assert_eq!(calls, expected, "{scripts:?}");
    }
    let calls = handed_over(&["ok", "bad"], Duration::ZERO).await;
    assert_eq!(calls, [(2 * EACH, position(2))]);
}

/// The checkpoint stays urgent when another record settles, whether as processed or as a dead letter.
#[tokio::test(start_paused = true)]
async fn checkpoint_stays_urgent_while_the_last_is_stored() {
    for more in [["bad", "ok"], ["ok", "bad"], ["bad", "bad"]] {
        let calls = handed_over(&["bad", more[0], more[1]], 2 * SECOND).await;
        let expected = [(EACH, position(1)), (EACH + 2 * SECOND, position(3))];
        assert_eq!(calls, expected, "{more:?}");
    }
}

/// A run that ends hands over its last checkpoint, and one that a record halts does so too.
#[tokio::test(start_paused = true)]
async fn last_checkpoint_is_that_of_the_result() {
    let latest = Mutex::new(None);
    let keep = |checkpoint| {
        *latest.lock().expect("no panic") = Some(checkpoint);
        async {}
    };
    let (pipeline, from) = (Pipeline::default(), Checkpoint::at(Position::TrimHorizon));
    for after in [DeadLetterPolicy::Continue, DeadLetterPolicy::Stop] {
        let (resilient, records) = (resilient(after), spaced(&["ok", "bad", "ok"]));
        let run = pipeline.run_until(&resilient, records, from.clone(), keep, pending());
        let (checkpoint, last) = match run.await {
            Ok(finished) => (finished.checkpoint, 3),
            Err(halted) => (halted.checkpoint, 2),
        };
        assert_eq!(checkpoint.position(), &position(last));
        assert_eq!(latest.lock().expect("no panic").take(), Some(checkpoint));
    }
}
