//! A worker of a fleet: a process with a clock of its own, and the clients that connect it to the world.

use std::fmt;
use std::future::pending;
use std::time::Duration;

use async_trait::async_trait;
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use rand::RngExt;
use redrive::checkpoint::DynamoDb;
use redrive::dead_letter::{DeadLetter, DeadLetterSink, Receipt, SinkError};
use redrive::observer::{Event, Observer};
use redrive::pipeline::{Capacity, Pipeline};
use redrive::processor::{Attempt, BoxProcessor};
use redrive::{BoxError, CircuitBreaker, Consumer, ConsumerError, Record, RecordProcessor, Resilient};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{Instant, advance, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Fleet;
use super::oracle::FAILOVER;
use super::plan::Outage;
use super::tables::{Kind, LEASES};
use crate::dynamo::{self, Refusal};
use crate::fault::Fault;
use crate::kinesis;
use crate::plan::stream;
use crate::world::{Skew, place};
use crate::{APPLICATION, STREAM};

/// A running worker.
pub struct Worker {
    pub index: usize,
    pub stop: CancellationToken,
    /// The time at which the worker was asked to stop.
    pub stopping: Option<Duration>,
    runtime: Runtime,
    running: JoinHandle<Result<(), ConsumerError>>,
    born: Duration,
    since: Instant,
    /// The time up to which the worker has run.
    until: Duration,
    skew: Skew,
}

impl Worker {
    pub fn start(fleet: &Fleet, index: usize, machine: usize, now: Duration) -> Option<Self> {
        let clock = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        let runtime = clock.ok()?;
        let stop = CancellationToken::new();
        let skew = fleet.plan().machines[machine].skew;
        let (since, running) = runtime.block_on(async {
            let since = Instant::now();
            fleet.world().process_runs(now, since, skew);
            let running =
                consumer(fleet, index).run_until(resilient(fleet, index), stop.clone().cancelled_owned());
            (since, tokio::spawn(running))
        });
        fleet.world().no_process_runs(now);
        Some(Worker {
            index,
            stop,
            stopping: None,
            runtime,
            running,
            born: now,
            since,
            until: now,
            skew,
        })
    }

    /// Lets the worker run until this time. A worker that has not run before `now` was suspended.
    pub fn run(&mut self, fleet: &Fleet, now: Duration, until: Duration) {
        let suspended = now.saturating_sub(self.until);
        self.until = until;
        let (born, since, skew) = (self.born, self.since, self.skew);
        if suspended > Duration::ZERO {
            fleet.state().oracle.awake.insert(self.index, now);
        }
        self.runtime.block_on(async {
            fleet.world().process_runs(born, since, skew);
            if suspended > Duration::ZERO {
                advance(suspended).await;
            }
            sleep_until(since + (until - born)).await;
        });
        fleet.world().no_process_runs(until);
    }

    /// Returns the result of a worker whose run has ended.
    pub fn ended(&mut self) -> Option<Result<(), String>> {
        if !self.running.is_finished() {
            return None;
        }
        let ended = self.runtime.block_on(&mut self.running);
        Some(match ended {
            Ok(result) => result.map_err(|error| format!("{error:?}")),
            Err(error) => Err(error.to_string()),
        })
    }
}

fn resilient(fleet: &Fleet, index: usize) -> Resilient<BoxProcessor> {
    let mut seeds = stream(fleet.plan().base.options.seed, &format!("engine {index}"));
    let part = Part {
        fleet: fleet.clone(),
        worker: index,
    };
    Resilient::builder(APPLICATION, part.clone().boxed())
        .workers(fleet.plan().base.workers)
        .retry(fleet.plan().base.policy.clone())
        .breaker(
            CircuitBreaker::builder()
                .seed(seeds.random())
                .build()
                .unwrap_or_default(),
        )
        .observer(part.clone())
        .seed(seeds.random())
        .dead_letters(part)
        .build()
        .expect("valid settings")
}

fn consumer(fleet: &Fleet, index: usize) -> Consumer {
    let plan = &fleet.plan().base;
    let mut seeds = stream(plan.options.seed, &format!("consumer {index}"));
    let tables = Part {
        fleet: fleet.clone(),
        worker: index,
    };
    let capacity = Capacity::builder().running(plan.running).bytes(plan.bytes);
    let pipeline = Pipeline::builder()
        .in_flight(plan.held)
        .capacity(capacity.build().expect("valid bounds"));
    Consumer::builder(kinesis::client(fleet.world()), STREAM)
        .checkpoints(
            DynamoDb::new(dynamo::client_of(tables), LEASES)
                .worker(&format!("w{index:02}"))
                .failover_time(FAILOVER)
                .write_interval(plan.write_interval),
        )
        .pipeline(pipeline.build().expect("valid"))
        .calls_per_second(plan.calls_per_second)
        .records_per_call(plan.page)
        .idle_interval(plan.idle)
        .seed(seeds.random())
        .build()
        .expect("valid settings")
}

/// The processor, the sink, the observer and the tables of one worker.
#[derive(Clone)]
struct Part {
    fleet: Fleet,
    worker: usize,
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w{:02}", self.worker)
    }
}

impl RecordProcessor for Part {
    type Error = BoxError;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> Result<(), BoxError> {
        let place = place(record.shard().as_str(), record.sequence_number())
            .ok_or("the record is not in the plan")?;
        let planned = self.fleet.begins(self.worker, place);
        sleep(planned.takes).await;
        self.fleet.ends(self.worker, place)
    }
}

#[async_trait]
impl DeadLetterSink for Part {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        let put = letters.iter().map(|letter| {
            if let Some(place) = place(&letter.shard.to_string(), &letter.sequence_number) {
                self.fleet.dead_lettered(self.worker, place);
            }
            Ok(Receipt::new("simulated"))
        });
        put.collect()
    }

    fn name(&self) -> String {
        "simulated".to_owned()
    }
}

impl Observer for Part {
    fn on(&self, event: &Event<'_>) {
        self.fleet.observed(self.worker, event);
    }
}

const OPERATIONS: [&str; 8] = [
    "DescribeTable",
    "BatchGetItem",
    "GetItem",
    "Scan",
    "Query",
    "PutItem",
    "UpdateItem",
    "DeleteItem",
];

const THROTTLED: Refusal = (400, "ProvisionedThroughputExceededException");
const FAILED: Refusal = (500, "InternalServerError");

impl Part {
    async fn call(
        &self,
        operation: &'static str,
        body: Value,
    ) -> Result<Result<Value, Refusal>, ConnectorError> {
        let (fleet, world) = (&self.fleet, self.fleet.world());
        let sent = world.now();
        let Some(table) = Kind::of(&body) else {
            return Ok(Err((400, "ResourceNotFoundException")));
        };
        world.contact(operation, self.worker, table as usize).await;
        let is_lost = || ConnectorError::io("connection refused".into());
        if world.strikes(Fault::RequestLost) {
            return Err(is_lost());
        }
        sleep(self.latency()).await;
        if let Some(outage) = fleet.plan().outage(table, world.now()) {
            world.count(Fault::TableOutage);
            return match outage {
                Outage::Throttled => Ok(Err(THROTTLED)),
                Outage::Fails => Ok(Err(FAILED)),
                Outage::Unreachable => Err(is_lost()),
            };
        }
        if world.strikes(Fault::Throttled) {
            return Ok(Err(THROTTLED));
        }
        if world.strikes(Fault::ServerError) {
            return Ok(Err(FAILED));
        }
        let writes = matches!(operation, "PutItem" | "UpdateItem" | "DeleteItem");
        if writes && world.strikes(Fault::LateWrite) {
            fleet.write_late(self.worker, operation, body);
            return pending().await;
        }
        let answer = fleet.answer(self.worker, operation, &body);
        if writes && world.strikes(Fault::RequestDoubled) {
            let _ = fleet.answer(self.worker, operation, &body);
        }
        sleep(self.latency()).await;
        if world.strikes(Fault::Silence) {
            return pending().await;
        }
        if world.strikes(Fault::ResponseLost) {
            return Err(ConnectorError::io("connection reset".into()));
        }
        if let (Kind::Leases, Ok(answer)) = (table, &answer) {
            fleet.delivered(self.worker, operation, sent, answer);
        }
        Ok(answer)
    }

    /// Draws the time that half of a call takes.
    fn latency(&self) -> Duration {
        let world = self.fleet.world();
        let is_slow = world.strikes(Fault::SlowResponse);
        let mut state = world.state();
        Duration::from_millis(match is_slow {
            true => state.timing.random_range(1_000..10_000),
            false => state.timing.random_range(self.fleet.plan().latency.clone()),
        })
    }
}

impl HttpConnector for Part {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (operation, body) = dynamo::request(&request);
        let mut operations = OPERATIONS.into_iter();
        let operation = operations.find(|known| *known == operation).unwrap_or("?");
        let part = self.clone();
        HttpConnectorFuture::new(async move {
            match part.call(operation, body).await? {
                Ok(answer) => dynamo::response(200, &answer),
                Err((status, code)) => {
                    dynamo::response(status, &json!({"__type": code, "message": "simulated"}))
                }
            }
        })
    }
}
