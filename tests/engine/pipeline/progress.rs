//! Tests of when a shard publishes a requested checkpoint, and of a run from an earlier checkpoint. Time is
//! paused throughout.

use std::future::pending;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use redrive::checkpoint::Checkpoint;
use redrive::pipeline::{Batch, Capacity, Pipeline, Progress, Published};
use redrive::{Position, Record, Resilient, dead_letter};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use support::script::{Script, record};

fn resilient(script: &Script) -> Resilient<Script> {
    Resilient::builder("billing", script.clone())
        .dead_letters(dead_letter::Memory::new())
        .build()
        .expect("valid")
}

/// Returns one batch per record, one per second. The stream does not end.
fn each_second(records: Vec<Record>) -> impl Stream<Item = Batch> + Unpin {
    let batches = stream::iter(records).then(|record| async {
        sleep(Duration::from_secs(1)).await;
        Batch::from(vec![record])
    });
    Box::pin(batches.chain(stream::once(pending())))
}

/// Returns the checkpoint that is published within 100 ms. No record settles during that time.
async fn at_once(published: &mut watch::Receiver<Option<Published>>) -> Option<Published> {
    let changed = timeout(Duration::from_millis(100), published.changed()).await;
    changed.ok()?.expect("the sender exists");
    published.borrow_and_update().clone()
}

fn position(number: u64) -> Position {
    record(number, "", "").position()
}

/// Runs a shard over `records`, which settle one second apart. `ask` requests checkpoints halfway between two
/// settlements.
async fn asking(records: &[&'static str], ask: impl AsyncFnOnce(&Progress)) {
    let script = Script::default();
    let resilient = resilient(&script);
    let records = (1..)
        .zip(records)
        .map(|(number, script)| record(number, &number.to_string(), script));
    let (progress, from) = (Progress::new(), Checkpoint::at(Position::TrimHorizon));
    let (pipeline, never) = (Pipeline::default(), CancellationToken::new());
    let records = each_second(records.collect());
    let run = pipeline.run_from(&resilient, records, from, &progress, &never);
    tokio::select! {
        _ = run => panic!("the input has no end"),
        () = async {
            sleep(Duration::from_millis(500)).await;
            ask(&progress).await;
        } => {}
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn checkpoint_is_published_once_per_request() {
    asking(&["ok"; 4], async |progress| {
        let mut published = progress.subscribe();
        sleep(2 * SECOND).await;
        assert!(
            at_once(&mut published).await.is_none(),
            "no checkpoint was requested"
        );
        // No record settles now: the request itself wakes the shard.
        progress.want_any();
        let made = at_once(&mut published).await.expect("two have settled");
        assert_eq!((made.checkpoint.position(), made.last), (&position(2), false));
        sleep(SECOND).await;
        assert!(
            at_once(&mut published).await.is_none(),
            "the checkpoint is being stored"
        );
        progress.want_urgent();
        assert!(
            at_once(&mut published).await.is_none(),
            "the checkpoint is not urgent"
        );
        progress.want_any();
        let made = at_once(&mut published).await.expect("one more has settled");
        assert_eq!(made.checkpoint.position(), &position(3));
        progress.want_any();
        assert!(at_once(&mut published).await.is_none(), "nothing has changed");
        progress.finish(Checkpoint::at(position(3)));
        let made = at_once(&mut published).await.expect("the last one");
        assert!(made.last);
    })
    .await;
}

/// The checkpoint stays urgent when another record settles, whether as processed or as a dead letter.
#[tokio::test(start_paused = true)]
async fn a_dead_letter_makes_a_checkpoint_urgent() {
    for records in [["bad", "ok"], ["ok", "bad"], ["bad", "bad"]] {
        asking(&records, async |progress| {
            let mut published = progress.subscribe();
            sleep(2 * SECOND).await;
            progress.want_urgent();
            let made = at_once(&mut published).await.expect("urgent");
            assert_eq!(made.checkpoint.position(), &position(2));
        })
        .await;
    }
}

/// Each page reserves almost all memory. Records that an earlier run settled ahead of its checkpoint must
/// release their share.
#[tokio::test(start_paused = true)]
async fn records_settled_ahead_release_their_memory_when_reread() {
    let records = ["hang", "ok", "ok"];
    let mut stored = None;
    asking(&records, async |progress| {
        let mut published = progress.subscribe();
        sleep(3 * SECOND).await;
        progress.want_any();
        stored = at_once(&mut published).await;
    })
    .await;
    let from = stored.expect("made").checkpoint;
    assert!(from.ahead().is_some());

    let (again, fourth) = (["ok", "ok", "ok"], record(4, "4", "ok"));
    let pages = (1..)
        .zip(again)
        .map(|(number, script)| record(number, &number.to_string(), script));
    let script = Script::default();
    let resilient = resilient(&script);
    let capacity = Capacity::builder()
        .running(64)
        .bytes(1_000)
        .build()
        .expect("valid");
    let pages = stream::iter(pages.chain([fourth])).then(|record| async {
        let reservation = capacity.reserve(999).await;
        Batch::reserved(vec![record], reservation)
    });
    let (progress, never) = (Progress::new(), CancellationToken::new());
    let pipeline = Pipeline::builder()
        .capacity(capacity.clone())
        .build()
        .expect("valid");
    let run = pipeline.run_from(&resilient, Box::pin(pages), from, &progress, &never);
    let finished = timeout(Duration::from_secs(60), run).await;
    assert!(
        finished
            .expect("all memory is released")
            .is_ok_and(|end| end.complete)
    );
    assert_eq!(script.first_calls(), [1, 4]);
}
