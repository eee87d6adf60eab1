//! Shutdown: no new record begins, running calls may end, and the next run resumes exactly there.

use std::collections::HashSet;
use std::time::Duration;

use redrive::{BoxError, Record, RetryPolicy, processor_fn};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::scene::{Scene, records};
use redrive::testing::Script;
use support::ledger::{Note, SinkState, covers};
use support::stream::{Place, Sent};
use support::waiting::eventually;

fn one(key: &str, steps: &str) -> (String, String) {
    (key.to_owned(), steps.to_owned())
}

fn places<'a>(sent: impl IntoIterator<Item = &'a Sent>) -> HashSet<Place> {
    sent.into_iter().map(|sent| sent.place.clone()).collect()
}

/// Returns the records for which the last run called the handler.
fn begun(scene: &Scene) -> HashSet<Place> {
    let book = scene.ledger.book();
    let begun = book.last_run().iter().filter_map(|note| match note {
        Note::Began(place) => Some(place.clone()),
        _ => None,
    });
    begun.collect()
}

fn unsettled(scene: &Scene, sent: &[Sent]) -> HashSet<Place> {
    let book = scene.ledger.book();
    places(sent.iter().filter(|sent| !book.settled.contains(&sent.place)))
}

#[tokio::test]
async fn shutdown_lets_running_calls_end_and_begins_none() {
    let scene = Scene::new(1).await;
    let sink_opens = CancellationToken::new();
    scene.sink.set(SinkState::Waits(sink_opens.clone()));
    scene
        .put([
            one("backoff", "fail"),
            one("running", "gate"),
            one("letter", "bad"),
        ])
        .await;
    scene.put(records(60, 6, |_| "ok")).await;
    scene.put([one("backoff", "ok"), one("running", "ok")]).await;
    let sent = scene.read().await;
    let left = places(
        sent.iter()
            .filter(|sent| sent.key == "backoff" || (sent.key == "running" && sent.data == b"ok")),
    );

    let script = Script::default();
    let patient = RetryPolicy::constant(Duration::from_secs(1_000)).max_elapsed(Duration::from_secs(5_000));
    let running = scene.run(
        scene.consumer().shutdown_timeout(Duration::from_secs(300)),
        scene.resilient_with(script.clone()).retry(patient),
    );
    scene.ledger.settled(60).await;
    running.stop.cancel();
    eventually("the backoff is cancelled", || {
        scene.ledger.events("RecordEvent::Unsettled") == 1
    })
    .await;
    // A running handler and an unconfirmed dead letter delay the shutdown, and meanwhile the consumer reads
    // nothing.
    scene.reading_stops().await;
    assert!(!running.is_finished());
    script.open_gate();
    sink_opens.cancel();
    running.end().await.expect("nothing halted");
    assert_eq!(unsettled(&scene, &sent), left);
    scene.ledger.check(&sent);
    assert!(scene.ledger.is_stored(&sent));

    scene.sink.set(SinkState::Up);
    let running = scene.start();
    scene.settle_all(running).await;
    assert_eq!(begun(&scene), left, "another record was repeated");
}

#[tokio::test]
async fn hanging_handler_is_dropped_and_its_record_redelivered() {
    let scene = Scene::new(2).await;
    scene
        .put(records(
            200,
            20,
            |number| if number == 45 { "hang" } else { "ok" },
        ))
        .await;
    let sent = scene.read().await;
    let hanging = sent
        .iter()
        .position(|sent| sent.data == b"hang")
        .expect("a record that hangs");
    let behind = sent[hanging..].iter().filter(|sent| sent.key == "key-5");
    let left = places(behind);

    let shutdown_timeout = Duration::from_secs(2);
    let consumer = scene.consumer().shutdown_timeout(shutdown_timeout);
    let running = scene.run(consumer, scene.resilient());
    scene.ledger.settled(sent.len() - left.len()).await;
    let start = Instant::now();
    running.stop().await.expect("nothing halted");
    let took = start.elapsed();
    assert!(
        took >= shutdown_timeout * 4 / 5,
        "the handler had only {took:?} to end"
    );
    assert!(
        took < shutdown_timeout * 8,
        "the shutdown took {took:?}, which is too long"
    );
    assert_eq!(unsettled(&scene, &sent), left);
    scene.ledger.check(&sent);
    assert!(scene.ledger.is_stored(&sent));

    let mended = processor_fn(async |_: Record| -> Result<(), BoxError> { Ok(()) });
    let running = scene.run(scene.consumer(), scene.resilient_with(mended));
    scene.settle_all(running).await;
    assert_eq!(begun(&scene), left, "another record was repeated");
}

/// Uses the longest possible shutdown timeout, which neither panics nor ends the consumer at once.
#[tokio::test]
async fn unlimited_shutdown_timeout_waits_for_the_handler() {
    let scene = Scene::new(1).await;
    scene.put([one("running", "gate")]).await;
    let script = Script::default();
    let running = scene.run(
        scene.consumer().shutdown_timeout(Duration::MAX),
        scene.resilient_with(script.clone()),
    );
    eventually("the handler runs", || !script.calls().is_empty()).await;
    running.stop.cancel();
    scene.reading_stops().await;
    assert!(!running.is_finished(), "the consumer ended before the handler");
    script.open_gate();
    scene.settle_all(running).await;
}

/// Drops the consumer without a shutdown, so no last checkpoint is written. The next run repeats only records
/// that no checkpoint covers.
#[tokio::test]
async fn dropped_consumer_loses_nothing() {
    let scene = Scene::new(2).await;
    scene
        .put(records(1_000, 50, |number| match number % 100 {
            3 => "sleep:40",
            7 => "fail,fail,ok",
            11 => "bad",
            _ => "sleep:1",
        }))
        .await;
    let sent = scene.read().await;
    let running = scene.run(scene.consumer().records_per_call(50), scene.resilient());
    scene.ledger.settled(400).await;
    running.abort().await;
    scene.reading_stops().await;
    let before = scene.ledger.book().notes.len();
    let stored = scene.ledger.book().last_saved();

    let running = scene.start();
    scene.ledger.settled(sent.len()).await;
    running.stop().await.expect("nothing halted");
    scene.ledger.check(&sent);
    assert!(scene.ledger.is_stored(&sent));
    let begun = begun(&scene);
    let repeated: Vec<&Sent> = sent
        .iter()
        .filter(|sent| covers(&stored, sent) && begun.contains(&sent.place))
        .collect();
    assert_eq!(repeated, [] as [&Sent; 0], "stored as settled, but begun again");
    assert!(scene.ledger.book().notes.len() > before);
}
