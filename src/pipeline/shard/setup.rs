//! The start of a shard's run, and the parts that the run is made of.

use std::future::poll_fn;

use futures_core::Stream;
use tokio_util::sync::CancellationToken;

use super::intake::Intake;
use super::queue::Queue;
use super::settling::Settling;
use super::wakers::Wakers;
use crate::checkpoint::Checkpoint;
#[cfg(feature = "kinesis")]
use crate::engine::{Fate, Member};
use crate::engine::{Group, Resilient, Run, Stepped};
use crate::pipeline::expiry::Expiring;
use crate::pipeline::progress::Progress;
use crate::pipeline::shard::{Running, Shard};
use crate::pipeline::slots::Slots;
use crate::pipeline::stall::StallDetector;
use crate::pipeline::window::Ordinal;
#[cfg(feature = "kinesis")]
use crate::pipeline::{Admission, CallGate};
use crate::pipeline::{Batch, Finished, Pipeline, ShardHalted};
use crate::processor::Handler;
use crate::record::Record;

/// Runs a shard until its batches end, a record halts it, or it is shut down.
pub(in crate::pipeline) async fn run<P, S>(
    pipeline: &Pipeline,
    resilient: &Resilient<P>,
    batches: S,
    from: Checkpoint,
    progress: &Progress,
    shutdown: &CancellationToken,
) -> Result<Finished, Box<ShardHalted>>
where
    P: Handler,
    S: Stream<Item = Batch> + Unpin,
{
    let (run, expiring) = begin(pipeline, resilient);
    let step = |ordinal, record, again| resilient.step(ordinal, record, again, &run);
    drive(
        pipeline,
        resilient,
        (&run, expiring, step),
        (batches, from),
        progress,
        shutdown,
    )
    .await
}

/// Runs a shard as [`run`] does, but every step that calls the processor asks the gate first.
#[cfg(feature = "kinesis")]
pub(in crate::pipeline) async fn run_gated<P, S>(
    pipeline: &Pipeline,
    resilient: &Resilient<P>,
    batches: S,
    from: Checkpoint,
    (progress, careful): (&Progress, &impl CallGate),
    shutdown: &CancellationToken,
) -> Result<Finished, Box<ShardHalted>>
where
    P: Handler,
    S: Stream<Item = Batch> + Unpin,
{
    let (run, expiring) = begin(pipeline, resilient);
    let step = |ordinal: Ordinal, record: Record, again: Option<Box<Group>>| {
        let run = &run;
        async move {
            if again.as_ref().is_some_and(|group| !group.calls_handler()) {
                return resilient.step(ordinal, record, again, run).await;
            }
            let group = |again: Option<Box<Group>>, record| {
                again.unwrap_or_else(|| Group::alone(Member::new(ordinal, None, record)))
            };
            match careful.take(&record).await {
                Admission::Attempt(turn) => {
                    let call = resilient.step(ordinal, record, again, run);
                    careful.watch(turn, call, || resilient.runs_elsewhere()).await
                }
                Admission::GivenUp(reason) => {
                    let place = record.place();
                    let group = group(again, record).given_up(reason);
                    resilient.step(ordinal, place, Some(group), run).await
                }
                Admission::Stopped => Stepped::Otherwise(Box::new(vec![Fate::Later(group(again, record))])),
            }
        }
    };
    drive(
        pipeline,
        resilient,
        (&run, expiring, step),
        (batches, from),
        progress,
        shutdown,
    )
    .await
}

fn begin<P: Handler>(pipeline: &Pipeline, resilient: &Resilient<P>) -> (Run, Expiring) {
    let expiring = Expiring::of(pipeline, resilient.dead_letters().is_some());
    let run = match pipeline.within {
        Some(within) => resilient.part_of_run(within, pipeline.retention.clone()),
        None => resilient.begin_run(expiring.lets_expire(), pipeline.retention.clone()),
    };
    (run, expiring)
}

async fn drive<P, S, F, M>(
    pipeline: &Pipeline,
    resilient: &Resilient<P>,
    (run, expiring, step): (&Run, Expiring, M),
    (batches, from): (S, Checkpoint),
    progress: &Progress,
    shutdown: &CancellationToken,
) -> Result<Finished, Box<ShardHalted>>
where
    P: Handler,
    S: Stream<Item = Batch> + Unpin,
    F: Future<Output = Stepped>,
    M: Fn(Ordinal, Record, Option<Box<Group>>) -> F,
{
    let _running = progress.run();
    let batch_bounds = resilient.batches().filter(|_| !pipeline.one_by_one);
    let mut shard = Shard {
        pipeline,
        run,
        progress,
        shutdown: Box::pin(shutdown.cancelled()),
        intake: Intake::new(batches),
        queue: Queue::new(batch_bounds),
        running: Running {
            slots: Slots::new(pipeline.in_flight),
            permits: pipeline.capacity.permits(),
            step,
            ended: Vec::new(),
        },
        settling: Settling::new(from, pipeline.ordering, &pipeline.capacity),
        wakers: Wakers::default(),
        fullness: StallDetector::default(),
        expiring,
        stop: None,
    };
    poll_fn(|cx| shard.turn(cx)).await;
    shard.finish()
}
