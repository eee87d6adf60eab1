//! The real consumer, engine and pipeline in a simulated world. One seed determines Kinesis, the stores, the
//! processor, the clock and all faults.

use std::pin::pin;
use std::time::Duration;

use rand::RngExt;
use redrive::checkpoint::DynamoDb;
use redrive::pipeline::{Capacity, Pipeline};
use redrive::processor::BoxProcessor;
use redrive::{
    CircuitBreaker, Consumer, ConsumerError, DeadLetterGuard, Resilient, consumer::Retrieval, dead_letter,
};
use tokio::runtime;
use tokio::time::{advance, sleep, timeout};
use tokio_util::sync::CancellationToken;

mod dynamo;
mod fault;
mod fleet;
mod handler;
mod kinesis;
mod lineage;
mod minimise;
mod oracle;
mod plan;
mod sink;
mod store;
mod subscription;
mod world;

pub use fault::{Counts, Fault};
pub use fleet::simulate_fleet;
pub use minimise::minimise;
pub use oracle::{Promise, Violation};
pub use plan::Options;
pub use world::Step;

use handler::Handler;
use plan::{Absence, Away, End, Plan, stream};
use sink::Sink;
use store::Store;
use world::World;

const APPLICATION: &str = "billing";
const STREAM: &str = "orders";
const LETTERS: &str = "orders-dlq";

/// The time after the last injected fault in which earlier faults may still have effects, such as a late
/// write or a call that hangs.
const AFTERMATH: Duration = Duration::from_secs(2 * 60);

/// The time limit for the reports of losses, once all other records are settled.
const REPORTED: Duration = Duration::from_secs(15 * 60);

/// The time after which the orchestrator restarts a process whose consumer could not start.
const RESTART: Duration = Duration::from_secs(5);

/// The outcome of a seed.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub violation: Option<Violation>,
    pub counts: Counts,
    /// A hash of all steps and their times.
    pub trace: Vec<Step>,
    /// The simulated time that the seed took.
    pub took: Duration,
    /// The seed ended with held records, and no record was left that could succeed.
    pub held: bool,
    pub records: u64,
    pub calls: u64,
    pub letters: u64,
    /// The number of workers that a fleet had.
    pub workers: u64,
}

/// Runs a seed to its end, or to the first broken promise.
pub fn simulate(options: &Options, print: bool) -> Outcome {
    let world = World::new(Plan::new(options), print);
    let mut life = Life {
        ends: world.plan().ends.clone().into_iter(),
        looks_once_more: world.plan().absence.is_some() || world.plan().recreated.is_some(),
        could_not_start: false,
        seeds: stream(options.seed, "jitter"),
        world: world.clone(),
    };
    loop {
        let clock = runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        let Ok(runtime) = clock else {
            world.violated(Promise::GoesOn, "no runtime".to_owned());
            break;
        };
        let after = runtime.block_on(life.process());
        // The tasks of a process end with the process.
        drop(runtime);
        if after.is_break() {
            break;
        }
    }
    let state = world.state();
    Outcome {
        violation: state.oracle.violation.clone(),
        counts: state.counts.clone(),
        trace: state.trace(),
        took: state.now(),
        held: state.oracle.held,
        records: state.oracle.shards.iter().map(|shard| shard.len() as u64).sum(),
        calls: state.oracle.calls,
        letters: state.oracle.letters,
        workers: 1,
    }
}

type After = std::ops::ControlFlow<()>;

struct Life {
    world: World,
    ends: std::vec::IntoIter<(End, Duration)>,
    /// One more process follows the last planned one, and detects losses. In the last planned process, a
    /// record that the stream dropped may still have been in flight.
    looks_once_more: bool,
    /// The run ended because there was no stream, or because calls were denied. The orchestrator starts
    /// another process.
    could_not_start: bool,
    seeds: rand::rngs::SmallRng,
}

impl Life {
    /// Runs a process from its start to its end.
    async fn process(&mut self) -> After {
        let world = self.world.clone();
        world.process_begins();
        let resilient = self.resilient();
        let guard = resilient.guard().cloned().unwrap_or_default();
        tokio::spawn(operate(world.clone(), guard));
        tokio::spawn(stand_still(world.clone()));
        if world.plan().leases {
            tokio::spawn(dynamo::rival(world.clone()));
        }
        loop {
            let (end, pause) = match self.ends.next() {
                Some((end, pause)) => (Some(end), pause),
                None => (None, Duration::ZERO),
            };
            let ended = world.plan().ends.len() - self.ends.len();
            self.run(resilient.clone(), end).await;
            if std::mem::take(&mut self.could_not_start) {
                world.process_ends(RESTART);
                return After::Continue(());
            }
            let broken = world.state().oracle.violation.is_some();
            if broken || end.is_none() {
                world.process_ends(Duration::ZERO);
                return match std::mem::take(&mut self.looks_once_more) && !broken {
                    true => After::Continue(()),
                    false => After::Break(()),
                };
            }
            if !matches!(end, Some(End::Dropped(_))) || world.is_dead() {
                world.process_ends(pause);
                let absence = world.plan().absence;
                let absence = absence.filter(|absence| absence.when == Away::AfterEnd(ended - 1));
                if let Some(Absence { length, .. }) = absence {
                    world.is_away(length);
                }
                return After::Continue(());
            }
        }
    }

    fn resilient(&mut self) -> Resilient<BoxProcessor> {
        let plan = self.world.plan();
        let client = kinesis::client(&self.world);
        let builder = Resilient::builder(APPLICATION, Handler::planned(&self.world))
            .workers(plan.workers)
            .retry(plan.policy.clone())
            .guard(
                DeadLetterGuard::builder()
                    .share(0.5)
                    .min_records(plan.guard_records)
                    .window(Duration::from_secs(60))
                    .build()
                    .unwrap_or_default(),
            )
            .breaker(
                CircuitBreaker::builder()
                    .seed(self.seeds.random())
                    .build()
                    .unwrap_or_default(),
            )
            .observer(self.world.clone())
            .seed(self.seeds.random());
        let builder = if plan.to_kinesis {
            builder.dead_letters(dead_letter::Kinesis::new(client, LETTERS).seed(self.seeds.random()))
        } else {
            builder.dead_letters(Sink(self.world.clone()))
        };
        builder.build().expect("valid settings")
    }

    /// Runs the consumer until the planned end, or until all records are settled.
    async fn run(&mut self, resilient: Resilient<BoxProcessor>, end: Option<End>) {
        let (world, plan) = (&self.world, self.world.plan());
        let capacity = Capacity::builder()
            .running(plan.running)
            .bytes(plan.bytes)
            .build()
            .expect("valid bounds");
        let consumer = Consumer::builder(kinesis::client(world), STREAM);
        let consumer = match plan.leases {
            true => consumer.checkpoints(
                DynamoDb::new(dynamo::client(world), dynamo::TABLE)
                    .write_interval(plan.write_interval)
                    .standby(),
            ),
            false => consumer.checkpoints(Store(world.clone())),
        };
        let consumer = consumer
            .pipeline(
                Pipeline::builder()
                    .ordering(plan.ordering)
                    .in_flight(plan.held)
                    .capacity(capacity.clone())
                    .build()
                    .expect("valid"),
            )
            .retrieval(match plan.fan_out {
                true => Retrieval::fan_out(),
                false => Retrieval::Polling,
            })
            .calls_per_second(plan.calls_per_second)
            .records_per_call(plan.page)
            .idle_interval(plan.idle)
            .seed(self.seeds.random())
            .build()
            .expect("valid settings");
        world.run_begins(
            &capacity,
            match end {
                Some(End::Crash(contact)) => Some(contact),
                _ => None,
            },
        );
        let stop = CancellationToken::new();
        let told = async {
            match end {
                Some(End::Shutdown(after) | End::Dropped(after)) => sleep(after).await,
                Some(End::Crash(_)) | None => self.all_settled(end.is_none()).await,
            }
        };
        {
            let mut running = pin!(consumer.run_until(resilient, stop.clone().cancelled_owned()));
            tokio::select! {
                biased;
                () = world.over() => return,
                ended = &mut running => {
                    let is_expected = match &ended {
                        Err(ConsumerError::StreamNotFound { .. }) => plan.recreated.is_some(),
                        // Several calls in a row were denied before the first call succeeded.
                        Err(ConsumerError::Refused(_)) => world.state().counts.of(Fault::AccessDenied) > 0,
                        _ => false,
                    };
                    if is_expected {
                        self.could_not_start = true;
                        return;
                    }
                    return world.violated(Promise::GoesOn, format!("the run ended by itself: {ended:?}"));
                }
                () = told => {}
            }
            match end {
                Some(End::Dropped(_)) => world.count(Fault::Dropped),
                _ => {
                    if end.is_some() {
                        world.count(Fault::Shutdown);
                    }
                    stop.cancel();
                    tokio::select! {
                        biased;
                        () = world.over() => return,
                        ended = running => if let Err(error) = ended
                            && !(plan.recreated.is_some() && matches!(error, ConsumerError::StreamNotFound { .. }))
                        {
                            world.violated(Promise::GoesOn, format!("the run ended with {error:?}"));
                        },
                        () = sleep(Duration::from_secs(25)) => {
                            world.violated(Promise::GoesOn, "the shutdown takes more than 20 s".to_owned());
                        }
                    }
                }
            }
        }
        // The tasks of a dropped consumer release their resources when they run next.
        sleep(Duration::from_millis(1)).await;
        if (capacity.running(), capacity.bytes()) != (0, 0) {
            world.violated(Promise::NothingLeaks, format!("{capacity:?}"));
        }
        if end.is_none() && !world.state().oracle.held {
            let checked = world.state().check_stored();
            world.check(checked);
            if !self.looks_once_more {
                let checked = world.state().oracle.check_losses();
                world.check(checked);
            }
        }
    }

    /// Returns when all records are settled. Reports a violation, and returns, if that takes too long.
    /// Without `ends`, the run has another planned end, and settled records do not end the wait.
    async fn all_settled(&self, ends: bool) {
        let (world, plan) = (&self.world, self.world.plan());
        while world.now() < plan.calm + AFTERMATH {
            sleep((plan.calm + AFTERMATH).saturating_sub(world.now())).await;
        }
        let settled = world.until(|state| ends && state.oracle.is_all_settled_in_run());
        let left = (plan.calm + plan.patience()).saturating_sub(world.now());
        if timeout(left, settled).await.is_err() {
            if world.state().oracle.is_held_by_design() {
                world.state().oracle.held = true;
                return;
            }
            let open = world.state().oracle.unsettled();
            let (count, some) = (open.len(), &open[..open.len().min(20)]);
            return world.violated(Promise::AllSettled, format!("{count} open: {some:?}"));
        }
        if !self.looks_once_more {
            let reported = world.until(|state| state.oracle.check_losses().is_ok());
            if timeout(REPORTED, reported).await.is_err() {
                let checked = world.state().oracle.check_losses();
                world.check(checked);
            }
        }
    }
}

/// Plays the operator, who resumes the dead-letter guard once the bad deploy is over.
async fn operate(world: World, guard: DeadLetterGuard) {
    loop {
        sleep(Duration::from_secs(60)).await;
        if !guard.state().is_empty() && !world.plan().is_bad_deploy(world.now()) {
            world.state().oracle.guard_resumed();
            guard.resume();
        }
    }
}

/// Suspends the process at the planned times, like a machine that sleeps.
async fn stand_still(world: World) {
    if let Some(Absence {
        when: Away::At(at),
        length,
    }) = world.plan().absence
    {
        tokio::spawn(be_suspended(world.clone(), at, length));
    }
    for &(at, length) in &world.plan().jumps {
        let Some(left) = at.checked_sub(world.now()) else {
            continue;
        };
        sleep(left).await;
        world.count(Fault::ClockJump);
        world.stands_still(length);
        advance(length).await;
    }
}

/// Suspends the process for hours, perhaps longer than the retention of the stream.
async fn be_suspended(world: World, at: Duration, length: Duration) {
    let Some(left) = at.checked_sub(world.now()) else {
        return;
    };
    sleep(left).await;
    world.is_suspended(length);
    advance(length).await;
}
