//! The handler: does what the plan says of each record, unless what it needs is down.

use std::future::pending;
use std::panic::resume_unwind;
use std::time::Duration;

use redrive::{Attempt, BoxError, Failure, Record, RecordProcessor, Scope};
use tokio::time::{Instant, sleep};

use super::fault::Fault;
use super::oracle::Cause;
use super::plan::{Behaviour, Outage};
use super::world::{World, place};

pub struct Handler(pub World);

impl RecordProcessor for Handler {
    type Error = BoxError;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> Result<(), BoxError> {
        let world = &self.0;
        let place = place(record.shard().as_str(), record.sequence_number()).ok_or("a record of no plan")?;
        world.contact("begins", place.0, place.1).await;
        world.check_fenced(place.0);
        let mut call = Call::begin(world, place);
        sleep(call.takes).await;
        world.contact("works", place.0, place.1).await;
        let failed = call.work().await;
        if failed.is_none() {
            // Done, and nobody knows it yet.
            world.state().oracle.handler_succeeded(place);
            call.over = true;
        }
        world.contact("ends", place.0, place.1).await;
        match failed {
            None => Ok(()),
            Some((cause, error)) => {
                call.failed(cause);
                Err(error)
            }
        }
    }
}

/// A call of the handler. Dropped before it is over, it was too late.
struct Call<'a> {
    world: &'a World,
    place: (usize, usize),
    began: Instant,
    takes: Duration,
    behaviour: Behaviour,
    own_failures: u32,
    over: bool,
    cause: Cause,
}

impl<'a> Call<'a> {
    fn begin(world: &'a World, place: (usize, usize)) -> Self {
        let mut state = world.state();
        let checked = state.oracle.handler_begins(world.plan(), place);
        let fate = &state.oracle.shards[place.0][place.1];
        let call = Call {
            world,
            place,
            began: Instant::now(),
            takes: fate.planned.takes,
            behaviour: fate.planned.behaviour,
            own_failures: fate.own_failures,
            over: false,
            cause: Cause::StoodStill,
        };
        if call.takes > Duration::from_millis(100) {
            state.counts.add(Fault::Slow);
        }
        drop(state);
        world.check(checked);
        world.check_bytes();
        call
    }

    fn failed(&mut self, cause: Cause) {
        self.over = true;
        // What dies with its process fails nobody.
        if self.world.is_dead() {
            return;
        }
        let mut state = self.world.state();
        let at = (state.step() + 1, state.now());
        state.note("failed", self.place.0, self.place.1);
        state
            .oracle
            .handler_failed(at, self.place, cause, self.began.elapsed());
    }

    /// What comes of it.
    async fn work(&mut self) -> Option<(Cause, BoxError)> {
        let (now, plan) = (self.world.now(), self.world.plan());
        if plan.is_bad_deploy(now) {
            self.world.count(Fault::BadDeploy);
            return Some((Cause::BadDeploy, Failure::permanent("a bad deploy").into()));
        }
        let outage = plan.outage(now);
        if outage.is_some() {
            self.world.count(Fault::Outage);
        }
        match outage {
            Some(Outage::Unknown) => return Some((Cause::Outage, "it does not work".into())),
            Some(Outage::Dependency) => {
                let error = Failure::transient("no connection").with_scope(Scope::Dependency);
                return Some((Cause::Outage, error.into()));
            }
            Some(Outage::Hangs) => {
                self.cause = Cause::Outage;
                pending::<()>().await;
            }
            None => {}
        }
        let error = self.misbehave().await?;
        Some((Cause::Itself, error))
    }

    async fn misbehave(&mut self) -> Option<BoxError> {
        let first = self.own_failures == 0;
        let fails = match self.behaviour {
            Behaviour::Succeeds => false,
            Behaviour::FailsFirst(times) => self.own_failures < times,
            Behaviour::AsksForTime(_) | Behaviour::HangsFirst | Behaviour::PanicsFirst => first,
            _ => true,
        };
        if !fails {
            return None;
        }
        if let Some(fault) = self.behaviour.fault() {
            self.world.count(fault);
        }
        match self.behaviour {
            Behaviour::AsksForTime(delay) => Some(Failure::transient("busy").with_retry_after(delay).into()),
            Behaviour::IsBad => Some(Failure::permanent("cannot be read").into()),
            Behaviour::IsRefused => Some(
                Failure::permanent("not allowed")
                    .with_scope(Scope::Dependency)
                    .into(),
            ),
            Behaviour::HangsFirst | Behaviour::AlwaysHangs => {
                self.cause = Cause::Itself;
                pending().await
            }
            Behaviour::PanicsFirst | Behaviour::AlwaysPanics => {
                self.failed(Cause::Itself);
                // Past the hook that prints panics.
                resume_unwind(Box::new("scripted"))
            }
            _ => Some("failed for reasons unknown".into()),
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut state = self.world.state();
        let now = state.now();
        state.oracle.handler_ended(now, self.place);
        drop(state);
        if !self.over {
            self.failed(self.cause);
        }
    }
}
