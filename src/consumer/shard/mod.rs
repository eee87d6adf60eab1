//! The task of one shard: read, settle, checkpoint, end.

pub(in crate::consumer) mod checkpointer;
pub(in crate::consumer) mod crash_loop;
pub(in crate::consumer) mod idle;
pub(in crate::consumer) mod lease;
pub(in crate::consumer) mod shard_end;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::checkpointer::Checkpointer;
use self::crash_loop::{CrashLoop, OneByOne, Pages};
use self::lease::{Lease, RenewedLease};
use self::shard_end::ShardEnd;
use super::read::cursor::{Reading, ReadingEnded};
use super::read::fan_out::FanOut;
use super::read::polling::Poller;
use super::read::read;
use crate::checkpoint::Checkpoint;
use crate::engine::Resilient;
use crate::observer::{Event, Interest, ShardEvent};
use crate::pipeline::{NoGate, Pipeline, Progress};
use crate::processor::Handler;

pub(super) struct ShardTask<P: Handler> {
    pub(super) resilient: Resilient<P>,
    pub(super) pipeline: Pipeline,
    pub(super) reading: Reading,
    pub(super) poller: Poller,
    pub(super) fan_out: Option<FanOut>,
    pub(super) checkpointer: Checkpointer,
    pub(super) progress: Arc<Progress>,
    pub(super) from: Checkpoint,
    pub(super) crash_loop: CrashLoop,
    pub(super) shutdown: CancellationToken,
    /// The shard's lease. `None` if the store is not shared by several processes.
    pub(super) lease: Option<Lease>,
    /// The time limit of the last checkpoint once everything else is done, and again of the release of the
    /// lease.
    pub(super) last_call: Duration,
}

impl<P: Handler> ShardTask<P> {
    pub(super) async fn run(self) -> ShardEnd {
        let ShardTask {
            resilient,
            pipeline,
            reading,
            poller,
            fan_out,
            checkpointer,
            progress,
            from,
            crash_loop,
            shutdown,
            lease,
            last_call,
        } = self;
        let ends = match &lease {
            Some(lease) => lease.state.ends().clone(),
            None => shutdown,
        };
        let (stream, shard) = (reading.stream.shared_name(), reading.shard.clone());
        let (observers, facts) = (reading.observers.clone(), reading.facts.clone());
        let report = |event: ShardEvent<'_>| {
            if observers.want(Interest::SHARDS) {
                observers.tell(&Event::Shard {
                    stream: &stream,
                    shard: &shard,
                    event,
                });
            }
        };
        report(ShardEvent::Started {
            position: from.position(),
        });
        // Reading and storing run on tasks of their own: a processor that blocks this task starves neither.
        // Pages are boxed, as a channel allocates 32 places, whatever its bound.
        let (sender, pages) = mpsc::channel(1);
        let reading = Box::pin(read(reading, poller, fan_out, sender));
        let reading = AbortOnDropHandle::new(tokio::spawn({
            let ends = ends.clone();
            // Once the shard stops, further pages would be discarded, however long running processor calls
            // take.
            async move {
                let read = ends.run_until_cancelled(reading).await;
                read.unwrap_or(ReadingEnded::NotWanted)
            }
        }));
        let mut storing = AbortOnDropHandle::new(tokio::spawn(checkpointer.run()));
        let lease = lease.map(Lease::start_renewal);
        let suspected = crash_loop.is_suspected();
        if let Some(starts) = suspected {
            report(ShardEvent::CrashLoopSuspected { starts });
        }
        let mut is_crash_loop_over = false;
        let pages = Pages::new(pages, crash_loop.clone());
        let result = if suspected.is_some() {
            // Boxed: few shards need this future, and thousands must not reserve space for it.
            Box::pin(async {
                let over = ends.child_token();
                let gate = OneByOne::new(crash_loop, &pipeline, over.clone());
                let result = pipeline
                    .one_by_one()
                    .run_from(&resilient, pages, from, &gate, &progress, over.cancelled())
                    .await;
                is_crash_loop_over = over.is_cancelled() && !ends.is_cancelled();
                result
            })
            .await
        } else {
            pipeline
                .run_from(&resilient, pages, from, &NoGate, &progress, ends.cancelled())
                .await
        };

        let (end, checkpoint) = match result {
            Ok(finished) if finished.complete => match reading.await {
                // Only the reader knows that the shard is closed. The absence of further pages is no end: an
                // end checkpoint would skip records that were not read.
                Ok(ReadingEnded::ShardClosed) => match begin_children(&lease, &ends).await {
                    true => (ShardEnd::Ended, finished.checkpoint.ended()),
                    false => (ShardEnd::Stopped, finished.checkpoint),
                },
                Ok(ReadingEnded::Refused(error)) => (ShardEnd::Refused(error), finished.checkpoint),
                Ok(ReadingEnded::NotFound(error)) => (ShardEnd::Failed(error), finished.checkpoint),
                Ok(ReadingEnded::PositionRefused(checkpoint)) => {
                    let checkpoint = match checkpoint.stream_created() {
                        Some(_) => *checkpoint,
                        None => facts.tag(*checkpoint),
                    };
                    (ShardEnd::PositionRefused, checkpoint)
                }
                Ok(ReadingEnded::Lost(loss)) => (ShardEnd::DataLost(loss), finished.checkpoint),
                Ok(ReadingEnded::NotWanted) => (ShardEnd::Stopped, finished.checkpoint),
                Err(broken) => (ShardEnd::broken(&broken), finished.checkpoint),
            },
            Ok(finished) if is_crash_loop_over => (ShardEnd::CrashLoopOver, finished.checkpoint),
            Ok(finished) => (ShardEnd::Stopped, finished.checkpoint),
            Err(halted) => {
                let checkpoint = halted.checkpoint.clone();
                (ShardEnd::Halted(halted), checkpoint)
            }
        };
        progress.finish(checkpoint);
        let stored = match end {
            // The children wait for this end: the store may take any time until the shutdown.
            ShardEnd::Ended => tokio::select! {
                biased;
                stored = &mut storing => stored.is_ok(),
                () = ends.cancelled() => matches!(timeout(last_call, &mut storing).await, Ok(Ok(()))),
            },
            _ => matches!(timeout(last_call, &mut storing).await, Ok(Ok(()))),
        };
        let end = match end {
            ShardEnd::Ended if !stored => ShardEnd::Stopped,
            end => end,
        };
        let end = match lease {
            Some(lease) => lease.end(end, last_call).await,
            None => end,
        };
        match &end {
            ShardEnd::Ended => report(ShardEvent::Ended),
            ShardEnd::Lost => report(ShardEvent::LeaseLost),
            ShardEnd::HandedOver => report(ShardEvent::HandedOver),
            ShardEnd::CrashLoopOver => report(ShardEvent::CrashLoopOver),
            ShardEnd::Stopped
            | ShardEnd::PositionRefused
            | ShardEnd::Halted(_)
            | ShardEnd::DataLost(_)
            | ShardEnd::Refused(_)
            | ShardEnd::Failed(_) => {}
        }
        end
    }
}

/// Prepares the children of a shard that ends. Returns true if the shard's end may be stored.
async fn begin_children(lease: &Option<RenewedLease>, ends: &CancellationToken) -> bool {
    match lease {
        Some(lease) => ends.run_until_cancelled(lease.begin_children()).await == Some(true),
        None => true,
    }
}
