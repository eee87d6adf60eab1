//! Tests of the memory that is reserved for the records of a shard. Time is paused throughout.

use std::future::pending;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::time::timeout;

use crate::checkpoint::Checkpoint;
use crate::failure::{BoxError, Failure};
use crate::pipeline::payload_memory::OVERHEAD;
use crate::pipeline::{Batch, Capacity, Finished, Pipeline, RecordOrder, ShardHalted};
use crate::processor::{processor_fn, processor_with};
use crate::protection::DeadLetterGuard;
use crate::record::{Position, Record};
use crate::{Resilient, dead_letter};

fn record(number: u64, sub: u64, payload: usize) -> Record {
    Record::builder("orders", "shardId-0".into(), number.into())
        .sub_sequence_number(sub)
        .partition_key(format!("{number}/{sub}"))
        .payload(vec![0; payload])
        .build()
}

async fn ok(_: Record) -> Result<(), BoxError> {
    Ok(())
}

/// Runs pages behind a checkpoint. Each page reserves `bytes` bytes of the capacity.
async fn run_pages<P>(
    resilient: &Resilient<P>,
    capacity: &Capacity,
    bytes: usize,
    pages: Vec<Vec<Record>>,
    from: Checkpoint,
) -> Result<Finished, Box<ShardHalted>>
where
    P: crate::processor::RecordProcessor,
{
    let pages =
        stream::iter(pages).then(async |records| Batch::reserved(records, capacity.reserve(bytes).await));
    let pipeline = Pipeline::builder()
        .capacity(capacity.clone())
        .build()
        .expect("valid");
    let run = pipeline.run_until(resilient, Box::pin(pages), from, |_| async {}, pending());
    let finished = timeout(Duration::from_secs(60), run).await;
    finished.expect("no memory stays reserved")
}

#[tokio::test(start_paused = true)]
async fn memory_is_released_on_settlement_and_on_drop() {
    let capacity = Capacity::builder()
        .running(64)
        .bytes(1_000)
        .build()
        .expect("valid");
    let first_only = async |record: Record| -> Result<(), BoxError> {
        match *record.sequence_number() == 1.into() {
            true => Ok(()),
            false => pending().await,
        }
    };
    let resilient = Resilient::builder("billing", processor_fn(first_only));
    let resilient = resilient.without_dead_letters().build().expect("valid");
    let (done, stuck) = (record(1, 0, 2), record(2, 0, 4));
    let batch = Batch::reserved(vec![done, stuck], capacity.reserve(900).await);
    assert_eq!(
        capacity.bytes(),
        2 + 4 + 2 * OVERHEAD,
        "the surplus of the reservation is released"
    );
    let pipeline = Pipeline::builder()
        .capacity(capacity.clone())
        .build()
        .expect("valid");
    let never_ends = stream::iter([batch]).chain(stream::pending());
    {
        let mut running = pin!(pipeline.run(&resilient, never_ends));
        assert!(timeout(Duration::from_millis(1), &mut running).await.is_err());
        assert_eq!(capacity.bytes(), 4 + OVERHEAD);
        assert_eq!(capacity.running(), 1);
    }
    assert_eq!((capacity.bytes(), capacity.running()), (0, 0));
}

/// Memory is released for every record, also for records that an earlier run has settled and for records that
/// share a buffer.
#[tokio::test(start_paused = true)]
async fn memory_is_released_for_every_record() {
    let resilient = Resilient::builder("billing", processor_fn(ok));
    let resilient = resilient.without_dead_letters().build().expect("valid");
    let plain = |number| record(number, 0, 100);
    let inside = |number, sub| record(number, sub, 100);
    // Each page reserves all but one byte, so the page before must release everything.
    const BYTES: usize = 10_000;
    let capacity = Capacity::builder()
        .running(64)
        .bytes(BYTES)
        .build()
        .expect("valid");
    let pages = vec![
        vec![plain(1), plain(2)],
        vec![inside(3, 0), inside(3, 1), inside(3, 2), plain(4)],
        vec![inside(5, 0), inside(5, 1), inside(6, 0), inside(6, 1), plain(7)],
    ];
    for covered in [
        Position::TrimHorizon,
        plain(2).position(),
        inside(3, 1).position(),
        inside(5, 0).position(),
        plain(7).position(),
    ] {
        let from = Checkpoint::at(covered);
        let finished = run_pages(&resilient, &capacity, BYTES - 1, pages.clone(), from).await;
        assert!(finished.expect("nothing halts").complete);
    }
}

/// Each page reserves almost all memory. Records that an earlier run settled ahead of its checkpoint must
/// release their share.
#[tokio::test(start_paused = true)]
async fn records_settled_ahead_release_their_memory_when_reread() {
    let first_hangs = async |record: Record| -> Result<(), BoxError> {
        match *record.sequence_number() == 1.into() {
            true => pending().await,
            false => Ok(()),
        }
    };
    let resilient = Resilient::builder("billing", processor_fn(first_hangs));
    let resilient = resilient.without_dead_letters().build().expect("valid");
    let batches = stream::iter([Batch::from(
        (1..=3).map(|number| record(number, 0, 2)).collect::<Vec<_>>(),
    )]);
    let from = Checkpoint::at(Position::TrimHorizon);
    let (pipeline, shutdown) = (Pipeline::default(), tokio::time::sleep(Duration::from_secs(1)));
    let run = pipeline.run_until(&resilient, batches, from, |_| async {}, shutdown);
    let from = run.await.expect("nothing halts").checkpoint;
    assert!(from.ahead().is_some());

    let called = Arc::new(Mutex::new(Vec::new()));
    let note = async |called: Arc<Mutex<Vec<_>>>, record: Record| -> Result<(), BoxError> {
        called
            .lock()
            .expect("no panic")
            .push(record.sequence_number().clone());
        Ok(())
    };
    let resilient = Resilient::builder("billing", processor_with(called.clone(), note));
    let resilient = resilient.without_dead_letters().build().expect("valid");
    let capacity = Capacity::builder()
        .running(64)
        .bytes(1_000)
        .build()
        .expect("valid");
    let pages = (1..=4).map(|number| vec![record(number, 0, 2)]).collect();
    let finished = run_pages(&resilient, &capacity, 999, pages, from).await;
    assert!(finished.expect("nothing halts").complete);
    assert_eq!(*called.lock().expect("no panic"), [1.into(), 4.into()]);
}

/// A shard that the dead-letter guard has stopped keeps no permit to run, and leaves memory for other shards.
#[tokio::test(start_paused = true)]
async fn stopped_shard_takes_no_permit_and_not_all_memory() {
    async fn obey(record: Record) -> Result<(), BoxError> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        match record.partition_key() {
            Some("bad") => Err(Failure::permanent("bad data").into()),
            _ => Ok(()),
        }
    }
    const BYTES: usize = 1 << 20;
    let capacity = Capacity::builder()
        .running(1)
        .bytes(BYTES)
        .build()
        .expect("valid");
    let guard = DeadLetterGuard::builder()
        .share(0.5)
        .min_records(10)
        .window(Duration::from_secs(60))
        .build()
        .expect("valid");
    let resilient = Resilient::builder("billing", processor_fn(obey))
        .dead_letters(dead_letter::Memory::new())
        .guard(guard.clone())
        .build()
        .expect("valid");
    let shard = |shard: &'static str, key: &'static str, pages: u64, payload: usize| {
        let (capacity, resilient) = (capacity.clone(), resilient.clone());
        let pipeline = Pipeline::builder()
            .ordering(RecordOrder::Unordered)
            .capacity(capacity.clone())
            .build()
            .expect("valid");
        async move {
            let pages = stream::iter(0..pages).then(|page| {
                let capacity = capacity.clone();
                let records = (0..10).map(move |number| {
                    Record::builder("orders", shard.into(), (page * 10 + number + 1).into())
                        .partition_key(key)
                        .payload(vec![0; payload])
                        .build()
                });
                async move { Batch::reserved(records.collect(), capacity.reserve(BYTES / 2).await) }
            });
            pipeline.run(&resilient, Box::pin(pages)).await
        }
    };
    let stopped = tokio::spawn(shard("shardId-0", "bad", 1_000, BYTES / 16));
    let other = tokio::spawn(shard("shardId-1", "good", 1_000, 100));
    let finished = timeout(Duration::from_secs(3_600), other)
        .await
        .expect("the other shard is not blocked");
    assert!(finished.expect("no panic").expect("nothing halts").complete);
    assert_eq!(guard.state().len(), 1);
    assert_eq!(capacity.running(), 0);
    assert!(
        capacity.bytes() > BYTES / 2,
        "only {} bytes are free",
        capacity.bytes()
    );
    stopped.abort();
}
