//! How a run of a shard begins, and what it works with.

use std::future::poll_fn;

use futures_core::Stream;
use tokio_util::sync::CancellationToken;

use super::super::expiring::Expiring;
use super::super::fullness::Fullness;
use super::super::progress::Progress;
use super::super::slots::Slots;
use super::super::{Batch, Finished, Pipeline, ShardHalted};
#[cfg(feature = "kinesis")]
use super::super::{Careful, Taken};
use super::intake::Intake;
use super::queue::Queue;
use super::settling::Settling;
use super::wakers::Wakers;
use super::{EngineSide, Running, Shard};
use crate::checkpoint::Checkpoint;
use crate::dead_letter::AfterDeadLetter;
use crate::processor::RecordProcessor;
use crate::record::Record;
#[cfg(feature = "kinesis")]
use crate::resilient::{Group, Pass, RetryState};
use crate::resilient::{Resilient, Run, Stage, Stepped};

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
    P: RecordProcessor,
    S: Stream<Item = Batch> + Unpin,
{
    let (run, expiring) = begin(pipeline, resilient);
    let step = |record, stage| resilient.step(record, stage, &run);
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

/// As [`run`]. Whatever calls the handler asks first.
#[cfg(feature = "kinesis")]
pub(in crate::pipeline) async fn run_careful<P, S>(
    pipeline: &Pipeline,
    resilient: &Resilient<P>,
    batches: S,
    from: Checkpoint,
    (progress, careful): (&Progress, &impl Careful),
    shutdown: &CancellationToken,
) -> Result<Finished, Box<ShardHalted>>
where
    P: RecordProcessor,
    S: Stream<Item = Batch> + Unpin,
{
    let (run, expiring) = begin(pipeline, resilient);
    let step = |record: Record, stage: Option<Box<Stage>>| {
        let run = &run;
        async move {
            if stage.as_ref().is_some_and(|stage| !stage.calls_handler()) {
                return resilient.step(record, stage, run).await;
            }
            match careful.take(&record).await {
                Taken::Tries(turn) => {
                    let call = resilient.step(record, stage, run);
                    careful.watch(turn, call, resilient.runs_elsewhere()).await
                }
                Taken::GivenUp(reason) => {
                    let state = stage.and_then(|stage| stage.state);
                    let stage = Stage {
                        state: Some(RetryState::given_up(state, reason)),
                        pass: Pass::FREE,
                        group: Group::default(),
                    };
                    resilient.step(record, Some(Box::new(stage)), run).await
                }
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

fn begin<P: RecordProcessor>(pipeline: &Pipeline, resilient: &Resilient<P>) -> (Run, Expiring) {
    let expiring = Expiring::of(pipeline, resilient.dead_letters().is_some());
    let run = match pipeline.within {
        Some(within) => resilient.part_of_run(within, pipeline.retention.clone()),
        None => resilient
            .protection()
            .begin_run(expiring.lets_expire(), pipeline.retention.clone()),
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
    P: RecordProcessor,
    S: Stream<Item = Batch> + Unpin,
    F: Future<Output = Stepped>,
    M: Fn(Record, Option<Box<Stage>>) -> F,
{
    let _running = progress.run();
    let batch_bounds = resilient.batches().filter(|_| !pipeline.one_by_one);
    let mut shard = Shard {
        pipeline,
        engine: EngineSide {
            protection: resilient.protection(),
            run,
            interrupted: resilient.interrupted(),
            observers: resilient.observers(),
            remembers: resilient.remembers(),
            after_dead_letter: match run.within {
                None => resilient.after_dead_letter(),
                // There is no way to stop.
                Some(_) => AfterDeadLetter::Continue,
            },
        },
        progress,
        shutdown: Box::pin(shutdown.cancelled()),
        intake: Intake::new(batches),
        queue: Queue::new(batch_bounds),
        running: Running {
            slots: Slots::new(pipeline.held),
            permits: pipeline.capacity.permits(),
            step,
            ended: Vec::new(),
        },
        settling: Settling::new(from, pipeline.ordering, &pipeline.capacity),
        wakers: Wakers::default(),
        fullness: Fullness::default(),
        expiring,
        stop: None,
    };
    poll_fn(|cx| shard.turn(cx)).await;
    shard.finish()
}
