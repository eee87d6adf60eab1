//! The start of a shard's run, and the parts that the run is made of.

use std::future::poll_fn;
use std::sync::Arc;

use futures_core::Stream;

use super::intake::Intake;
use super::queue::Queue;
use super::settling::Settling;
use super::steps::Steps;
use super::wakers::Wakers;
use crate::checkpoint::Checkpoint;
use crate::engine::{Resilient, Run, Slots};
use crate::pipeline::CallGate;
use crate::pipeline::expiry::Expiring;
use crate::pipeline::progress::Progress;
use crate::pipeline::shard::{Running, Shard};
use crate::pipeline::stall::StallDetector;
use crate::pipeline::{Batch, Finished, Pipeline, ShardHalted};
use crate::processor::Handler;

/// Runs a shard until its batches end, a record halts it, or it is shut down. Every processor call passes the
/// gate.
pub(in crate::pipeline) async fn run<P, S, G>(
    pipeline: &Pipeline,
    resilient: &Resilient<P>,
    batches: S,
    from: Checkpoint,
    gate: &G,
    progress: &Progress,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<Finished, Box<ShardHalted>>
where
    P: Handler,
    S: Stream<Item = Batch> + Unpin,
    G: CallGate,
{
    let (run, expiring) = begin(pipeline, resilient);
    let run = Arc::new(run);
    let has_workers = G::ADMITS_ALL && !pipeline.one_by_one;
    let workers = has_workers.then(|| resilient.start_workers(pipeline.in_flight, &run));
    let steps = match workers.flatten() {
        Some(workers) => Steps::OnWorkers(workers),
        None => Steps::Here {
            slots: Slots::new(pipeline.in_flight),
            step: |ordinal, record, again| gate.step(resilient, &run, ordinal, record, again),
        },
    };
    let _running = progress.run();
    let batch_bounds = resilient.batches().filter(|_| !pipeline.one_by_one);
    let mut shard = Shard {
        pipeline,
        run: &run,
        progress,
        shutdown: Box::pin(shutdown),
        intake: Intake::new(batches),
        queue: Queue::new(batch_bounds),
        running: Running {
            steps,
            permits: pipeline.capacity.permits(),
            ended: Vec::new(),
        },
        settling: Settling::new(from, pipeline.ordering, &pipeline.capacity),
        wakers: Wakers::default(),
        fullness: StallDetector::default(),
        expiring,
        stop: None,
    };
    poll_fn(|cx| shard.turn(cx)).await;
    shard.running.steps.close().await;
    shard.finish()
}

fn begin<P: Handler>(pipeline: &Pipeline, resilient: &Resilient<P>) -> (Run, Expiring) {
    let expiring = Expiring::of(pipeline, resilient.dead_letters().is_some());
    let run = match pipeline.within {
        Some(within) => resilient.part_of_run(within, pipeline.retention.clone()),
        None => resilient.begin_run(expiring.lets_expire(), pipeline.retention.clone()),
    };
    (run, expiring)
}
