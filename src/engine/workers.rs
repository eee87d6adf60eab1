//! Worker tasks, which take the steps of a shard's records on several cores.

use std::future::poll_fn;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::task::coop::has_budget_remaining;
use tracing::Instrument;

use super::slots::Slots;
use super::{Group, Member, MemberStep, Resilient, Run, Stepped};
use crate::config::ConfigError;
use crate::processor::Handler;
use crate::record::Record;

/// The maximum number of workers per shard.
const MAX_WORKERS: usize = 1_024;

/// The setting of the workers. Only a processor that borrows nothing can be called on another task, so the
/// setting contains the function that starts them.
pub(super) struct WorkerSetting<P: Handler> {
    count: usize,
    start: fn(usize, usize, &Resilient<P>, &Arc<Run>) -> Workers,
}

impl<P: Handler + 'static> WorkerSetting<P> {
    pub(super) fn new(count: usize) -> Self {
        WorkerSetting {
            count,
            start: Workers::start,
        }
    }
}

impl<P: Handler> WorkerSetting<P> {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if (1..=MAX_WORKERS).contains(&self.count) {
            return Ok(());
        }
        let problem = format!("must be at least 1 and at most {MAX_WORKERS}, not {}", self.count);
        Err(ConfigError::new("workers", problem))
    }

    /// Starts the workers of a run, each with room for `in_flight` steps. Returns `None` if the shard's own task
    /// takes the steps.
    pub(super) fn start(
        &self,
        in_flight: usize,
        resilient: &Resilient<P>,
        run: &Arc<Run>,
    ) -> Option<Workers> {
        (self.count > 1).then(|| (self.start)(self.count, in_flight, resilient, run))
    }
}

/// The identity of a running step.
#[derive(Clone, Copy)]
pub(crate) struct Tag {
    pub(crate) ordinal: u64,
    /// True if the step has a permit to call the processor.
    pub(crate) permit: bool,
    /// The number of the worker. 0 for a step on the shard's task.
    pub(crate) worker: u16,
}

/// The number of results that the shard's task takes at once.
const AT_ONCE: usize = 64;

/// Worker tasks. Dropping this value aborts them.
///
/// The channels have no bound of their own: the permits of the shard bound the steps that run.
pub(crate) struct Workers {
    workers: Vec<Worker>,
    results: UnboundedReceiver<(Tag, Stepped)>,
    tasks: JoinSet<()>,
}

struct Worker {
    jobs: UnboundedSender<Job>,
    /// The number of jobs whose results are not received yet.
    running: usize,
}

/// A step to take.
struct Job {
    tag: Tag,
    record: Record,
    again: Option<Box<Group>>,
}

impl Workers {
    fn start<P: Handler + 'static>(
        count: usize,
        in_flight: usize,
        resilient: &Resilient<P>,
        run: &Arc<Run>,
    ) -> Self {
        let (sender, results) = unbounded_channel();
        let (mut workers, mut tasks) = (Vec::with_capacity(count), JoinSet::new());
        for _ in 0..count {
            let (jobs, received) = unbounded_channel();
            workers.push(Worker { jobs, running: 0 });
            let work = work(
                resilient.clone(),
                run.clone(),
                in_flight,
                received,
                sender.clone(),
            );
            tasks.spawn(work.in_current_span());
        }
        Workers {
            workers,
            results,
            tasks,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.workers.iter().all(|worker| worker.running == 0)
    }

    /// Gives a step to the worker that has the fewest. The lanes keep the order of each key: of two records of a
    /// key, only one is on its way.
    pub(crate) fn begin(&mut self, ordinal: u64, permit: bool, record: Record, again: Option<Box<Group>>) {
        let workers = (0..).zip(&mut self.workers);
        let Some((worker, idlest)) = workers.min_by_key(|(_, worker)| worker.running) else {
            return;
        };
        idlest.running += 1;
        let tag = Tag {
            ordinal,
            permit,
            worker,
        };
        // A worker that has ended has panicked, which `poll_ended` finds.
        let _ = idlest.jobs.send(Job { tag, record, again });
    }

    /// Takes all steps that have ended, and wakes the task for the next one. Returns their number.
    ///
    /// # Panics
    ///
    /// Panics if a worker has panicked: the steps that it was taking will never end.
    pub(crate) fn poll_ended(&mut self, cx: &mut Context<'_>, ended: &mut Vec<(Tag, Stepped)>) -> usize {
        if let Poll::Ready(Some(Err(error))) = self.tasks.poll_join_next(cx)
            && error.is_panic()
        {
            resume_unwind(error.into_panic());
        }
        let before = ended.len();
        while let Poll::Ready(1..) = self.results.poll_recv_many(cx, ended, AT_ONCE) {}
        for (tag, _) in ended.iter().skip(before) {
            if let Some(worker) = self.workers.get_mut(usize::from(tag.worker)) {
                worker.running -= 1;
            }
        }
        ended.len() - before
    }

    /// Ends the workers. A call that still runs is dropped at its `.await`.
    pub(crate) async fn close(&mut self) {
        self.results.close();
        self.workers.clear();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Takes steps until the shard has no more of them.
async fn work<P: Handler>(
    resilient: Resilient<P>,
    run: Arc<Run>,
    in_flight: usize,
    mut jobs: UnboundedReceiver<Job>,
    results: UnboundedSender<(Tag, Stepped)>,
) {
    let mut slots = Slots::new(in_flight);
    let mut ended = Vec::new();
    // A run that is over receives no results.
    let send = |result| drop(results.send(result));
    poll_fn(|cx| {
        slots.stop_listening();
        loop {
            slots.poll_woken(&mut ended);
            ended.drain(..).for_each(send);
            match jobs.poll_recv(cx) {
                // The run is over, or was dropped.
                _ if results.is_closed() => return Poll::Ready(()),
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Ready(Some(job)) if run.is_stopping() && job.calls_handler() => send(job.released()),
                Poll::Ready(Some(job)) => {
                    let Job { tag, record, again } = job;
                    let step = || resilient.step(tag.ordinal, record, again, &run);
                    slots.start(tag, step).into_iter().for_each(send);
                }
                Poll::Pending if slots.has_woken() && has_budget_remaining() => {}
                Poll::Pending => break,
            }
        }
        slots.listen(cx);
        Poll::Pending
    })
    .await;
}

impl Job {
    fn calls_handler(&self) -> bool {
        self.again.as_ref().is_none_or(|group| group.calls_handler())
    }

    /// Returns the result of a step that is not taken, because the shard stops.
    fn released(self) -> (Tag, Stepped) {
        let Job { tag, record, again } = self;
        let group = again.unwrap_or_else(|| Group::alone(Member::new(tag.ordinal, None, record)));
        (tag, Stepped::Otherwise(Box::new(vec![MemberStep::Later(group)])))
    }
}
