//! A fleet: several consumers share the shards of one stream, through one set of tables.
//!
//! Each worker has a runtime of its own with a clock of its own, as a process on its own machine. The workers run
//! in turns of a few milliseconds. A worker that is suspended gets no turn. A worker that is killed loses its
//! runtime, and with it all of its tasks.

mod oracle;
mod plan;
mod run;
mod tables;
mod worker;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redrive::BoxError;
use redrive::observer::{Event, FleetEvent};
use serde_json::{Value, json};

pub use self::run::simulate_fleet;

use self::oracle::Oracle;
use self::plan::{FleetPlan, LeaderFault};
use self::tables::{Kind, OWNER, Settings, Tables};
use crate::Violation;
use crate::dynamo::{Refusal, text};
use crate::fault::Fault;
use crate::plan::{Behaviour, Options, Planned, millis, stream};
use crate::world::World;

/// The world of a fleet. Clones share it.
#[derive(Clone)]
pub struct Fleet(Arc<Shared>);

struct Shared {
    plan: FleetPlan,
    /// The stream, the faults of single calls, the clock and the trace.
    world: World,
    state: Mutex<State>,
}

pub struct State {
    pub tables: Tables,
    pub oracle: Oracle,
    /// The writes that take effect later, by worker. Their callers have given them up.
    late: Vec<(Duration, usize, &'static str, Value)>,
}

impl Fleet {
    fn new(options: &Options, print: bool) -> Self {
        let plan = FleetPlan::new(options);
        let world = World::new(plan.base.clone(), false);
        world.state().prints_from_now_on(print);
        if print {
            println!("{plan:#?}");
        }
        let settings = Settings {
            staleness: plan.staleness,
            index_delay: plan.index_delay,
            has_index: plan.has_index,
            page: plan.page,
        };
        if !plan.has_index {
            world.count(Fault::IndexMissing);
        }
        let oracle = Oracle::new(&world.state().oracle.shards);
        let tables = Tables::new(settings, stream(options.seed, "tables"));
        Fleet(Arc::new(Shared {
            plan,
            world,
            state: Mutex::new(State {
                tables,
                oracle,
                late: Vec::new(),
            }),
        }))
    }

    pub fn plan(&self) -> &FleetPlan {
        &self.0.plan
    }

    pub fn world(&self) -> &World {
        &self.0.world
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks a worker that begins a record.
    fn begins(&self, worker: usize, place: (usize, usize)) -> Planned {
        let world = self.world();
        let (checked, planned) = {
            let (state, mut outside) = (self.state(), world.state());
            outside.note("begins", worker, place.0 * 10_000 + place.1);
            outside.oracle.calls += 1;
            let (fates, now) = (&outside.oracle.shards, outside.now());
            let checked = state
                .oracle
                .begins(&state.tables, &self.plan().base, fates, worker, place, now);
            (checked, fates[place.0][place.1].planned.clone())
        };
        if planned.takes > Duration::from_millis(100) {
            world.count(Fault::Slow);
        }
        world.check(checked);
        planned
    }

    fn ends(&self, worker: usize, place: (usize, usize)) -> Result<(), BoxError> {
        let mut outside = self.world().state();
        outside.note("ends", worker, place.0 * 10_000 + place.1);
        let fate = &mut outside.oracle.shards[place.0][place.1];
        if let Behaviour::FailsFirst(times) = fate.planned.behaviour
            && fate.own_failures < times
        {
            fate.own_failures += 1;
            outside.counts.add(Fault::Flaky);
            return Err("failed for reasons unknown".into());
        }
        outside.oracle.handler_succeeded(place);
        Ok(())
    }

    fn dead_lettered(&self, worker: usize, place: (usize, usize)) {
        let mut outside = self.world().state();
        outside.note("letter", worker, place.0 * 10_000 + place.1);
        outside.oracle.letters += 1;
        // A dead letter settles its record as well.
        outside.oracle.handler_succeeded(place);
    }

    fn observed(&self, worker: usize, event: &Event<'_>) {
        if let Event::Fleet {
            event: FleetEvent::LeaseExpired { shard, owner, .. },
            ..
        } = event
            && self.plan().is_undisturbed()
        {
            let checked = self.state().oracle.expired(worker, shard, owner);
            self.world().check(checked);
        }
        let state = self.world().state();
        if state.prints() && !matches!(event, Event::Record { .. }) {
            println!("{:>12.3}     w{worker:02} {event:?}", state.now().as_secs_f64());
        }
    }

    fn answer(&self, worker: usize, operation: &'static str, body: &Value) -> Result<Value, Refusal> {
        let now = self.world().now();
        loop {
            let late = {
                let mut state = self.state();
                let is_due = |late: &(Duration, usize, &'static str, Value)| late.0 <= now;
                let due = state.late.iter().position(is_due);
                due.map(|due| state.late.remove(due))
            };
            let Some((_, worker, operation, body)) = late else {
                break;
            };
            let _ = self.answer_one(worker, operation, &body, now);
        }
        self.answer_one(worker, operation, body, now)
    }

    fn answer_one(
        &self,
        worker: usize,
        operation: &'static str,
        body: &Value,
        now: Duration,
    ) -> Result<Value, Refusal> {
        let mut written = Vec::new();
        let mut saved = Vec::new();
        let answer = {
            let mut state = self.state();
            let answer = state.tables.answer(operation, body, now, &mut written);
            for written in &written {
                // Only a worker that takes up a row writes the stream's name.
                let update = body["UpdateExpression"].as_str().unwrap_or_default();
                if update.contains("#redriveStream =") {
                    saved.push(state.oracle.taken(worker, written).map(|()| None));
                }
                saved.push(state.oracle.written(written));
            }
            answer
        };
        for saved in saved {
            match saved {
                Ok(Some((shard, checkpoint))) => self.world().save(shard, checkpoint),
                Ok(None) => {}
                Err(violation) => self.world().check(Err(violation)),
            }
        }
        for written in &written {
            self.print_row(worker, written.after.as_ref(), &written.key);
        }
        answer
    }

    fn print_row(&self, worker: usize, row: Option<&crate::dynamo::Item>, key: &str) {
        let state = self.world().state();
        if state.prints() {
            let column = |name: &str| row.and_then(|row| text(row, name)).unwrap_or("-").to_owned();
            let counter = row
                .and_then(|row| row.get("leaseCounter"))
                .map(|value| value["N"].to_string());
            println!(
                "{:>12.3}     w{worker:02} writes {key}: owner {} by {} counter {counter:?} at {}",
                state.now().as_secs_f64(),
                column(OWNER),
                column("checkpointOwner"),
                column("checkpoint"),
            );
        }
    }

    /// Notes that a worker has the answer to a call for rows of the lease table.
    fn delivered(&self, worker: usize, operation: &str, sent: Duration, answer: &Value) {
        let now = self.world().now();
        let row = answer["Attributes"]
            .as_object()
            .or_else(|| answer["Item"].as_object());
        if let Some(row) = row {
            self.state().oracle.delivered(worker, operation, sent, now, row);
        }
    }

    /// Schedules a write that takes effect later, if its condition still holds then.
    fn write_late(&self, worker: usize, operation: &'static str, body: Value) {
        let due = {
            let mut outside = self.world().state();
            let due = outside.now() + millis(&mut outside.timing, 1_000..60_000);
            due.min(self.plan().base.calm)
        };
        self.state().late.push((due, worker, operation, body));
    }

    fn leader_fails(&self, fault: LeaderFault) {
        let world = self.world();
        let now = world.now();
        let mut state = self.state();
        let leader = state.tables.item(Kind::States, LEADER).cloned();
        let after = match fault {
            LeaderFault::Deleted => {
                world.count(Fault::LeaderDeleted);
                None
            }
            LeaderFault::Replaced(lasts) => {
                world.count(Fault::LeaderReplaced);
                let item = json!({
                    "key": {"S": LEADER},
                    "ownerName": {"S": "ghost"},
                    "leaseDuration": {"S": lasts.as_millis().to_string()},
                    "recordVersionNumber": {"S": format!("ghost at {now:?}")},
                });
                item.as_object().cloned()
            }
            LeaderFault::Released => {
                let Some(mut leader) = leader else { return };
                world.count(Fault::LeaderReleased);
                leader.insert("isReleased".to_owned(), json!({"S": "1"}));
                Some(leader)
            }
        };
        world.state().note("leader", 0, 0);
        state.tables.write(Kind::States, LEADER, after, now);
    }

    /// Checks after an undisturbed shutdown of all workers that a restart would repeat nothing.
    fn check_stopped(&self) -> Result<(), Violation> {
        self.world().state().check_stored()
    }

    fn count_reads(&self) {
        let state = self.state();
        for _ in 0..state.tables.stale_reads {
            self.world().count(Fault::StaleRead);
        }
        for _ in 0..state.tables.late_changes {
            self.world().count(Fault::IndexLate);
        }
    }
}

/// The key of the leader's item.
const LEADER: &str = "Leader";
