//! The simulated processor. It behaves as planned for each record, unless its dependency is down.

use std::future::pending;
use std::panic::resume_unwind;
use std::time::Duration;

use redrive::processor::{Attempt, BatchFailure, BoxProcessor};
use redrive::{BatchProcessor, BoxError, Failure, Record, RecordOrder, RecordProcessor, Scope};
use tokio::time::sleep;

use super::fault::Fault;
use super::oracle::Cause;
use super::plan::{Behaviour, Outage};
use super::world::{World, place};

pub struct Handler(pub World);

impl Handler {
    /// Creates the planned processor, which gets one record per call or several.
    pub fn planned(world: &World) -> BoxProcessor {
        let handler = Handler(world.clone());
        match &world.plan().batches {
            None => handler.boxed(),
            Some(batches) => handler
                .batched()
                .size(batches.size)
                .linger(batches.linger)
                .boxed(),
        }
    }
}

impl BatchProcessor for Handler {
    type Error = BoxError;

    async fn process_batch(&self, records: &[Record], _: &Attempt<'_>) -> Result<(), BatchFailure<BoxError>> {
        let world = &self.0;
        let places = records
            .iter()
            .map(|record| place(record.shard().as_str(), record.sequence_number()));
        let Some(places) = places.collect::<Option<Vec<_>>>() else {
            return Err(BoxError::from("the record is not in the plan"))?;
        };
        let Some(&first) = places.first() else {
            return Ok(());
        };
        world.contact("begins", first.0, first.1).await;
        world.check_fenced(first.0);
        let mut calls: Vec<Call<'_>> = places
            .iter()
            .map(|&place| Call::begin_with(world, place, &places))
            .collect();
        sleep(calls.iter().map(|call| call.takes).max().unwrap_or_default()).await;
        world.contact("works", first.0, first.1).await;
        let names = world.plan().batches.as_ref().is_some_and(|batches| batches.names);
        let (mut failed, mut left) = (Vec::new(), Vec::new());
        for (index, record) in records.iter().enumerate() {
            let in_lane = |(other, ..): &(usize, Cause, BoxError)| match world.plan().ordering {
                RecordOrder::Unordered => false,
                RecordOrder::Shard => true,
                _ => records[*other].partition_key() == record.partition_key(),
            };
            // A record behind a failed one in its lane is not processed: it would be out of order.
            if failed.iter().any(in_lane) {
                left.push(index);
                continue;
            }
            let error = calls[index].work().await;
            failed.extend(error.map(|(cause, error)| (index, cause, error)));
            if !names && !failed.is_empty() {
                break;
            }
        }
        // Without names, either all records succeed or none.
        if names || failed.is_empty() {
            left.into_iter().for_each(|index| calls[index].over = true);
            let is_failed = |index| failed.iter().any(|(failed, ..)| *failed == index);
            for (index, call) in calls.iter_mut().enumerate() {
                if !call.over && !is_failed(index) {
                    world.state().oracle.handler_succeeded(call.place);
                    call.over = true;
                }
            }
        }
        world.contact("ends", first.0, first.1).await;
        for (index, cause, _) in &failed {
            calls[*index].is_alone |= names;
            calls[*index].failed(*cause);
        }
        match names {
            true if failed.is_empty() => Ok(()),
            true => Err(BatchFailure::of(
                failed.into_iter().map(|(index, _, error)| (index, error)),
            )),
            false => match failed.pop() {
                Some((_, _, error)) => Err(BatchFailure::All(error)),
                None => Ok(()),
            },
        }
    }
}

impl RecordProcessor for Handler {
    type Error = BoxError;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> Result<(), BoxError> {
        let world = &self.0;
        let place = place(record.shard().as_str(), record.sequence_number())
            .ok_or("the record is not in the plan")?;
        world.contact("begins", place.0, place.1).await;
        world.check_fenced(place.0);
        let mut call = Call::begin(world, place);
        sleep(call.takes).await;
        world.contact("works", place.0, place.1).await;
        let failed = call.work().await;
        if failed.is_none() {
            // The record is processed, and the engine does not know it yet.
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

/// A call of the processor for one record. A call that is dropped before its end, as by a timeout, has
/// failed.
struct Call<'a> {
    world: &'a World,
    place: (usize, usize),
    takes: Duration,
    behaviour: Behaviour,
    own_failures: u32,
    over: bool,
    is_alone: bool,
    cause: Cause,
}

impl<'a> Call<'a> {
    fn begin(world: &'a World, place: (usize, usize)) -> Self {
        Call::begin_with(world, place, &[place])
    }

    fn begin_with(world: &'a World, place: (usize, usize), with: &[(usize, usize)]) -> Self {
        let mut state = world.state();
        let checked = state.oracle.handler_begins(world.plan(), place, with);
        let is_alone = with.len() == 1;
        let fate = &state.oracle.shards[place.0][place.1];
        let call = Call {
            world,
            place,
            takes: fate.planned.takes,
            behaviour: fate.planned.behaviour,
            own_failures: fate.own_failures,
            over: false,
            is_alone,
            cause: if is_alone {
                Cause::StoodStill
            } else {
                Cause::Beside
            },
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
        // A call that ends with its process is not a failure.
        if self.world.is_dead() {
            return;
        }
        let mut state = self.world.state();
        let at = (state.step() + 1, state.clock());
        state.note("failed", self.place.0, self.place.1);
        let outage = self.world.plan().outage_number(state.now());
        state
            .oracle
            .handler_failed(at, self.place, (cause, self.is_alone), outage);
    }

    /// Runs the planned behaviour. Returns an error and its cause if the call fails.
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
                // Unlike `panic!`, this does not call the panic hook, which would print the panic.
                resume_unwind(Box::new("scripted"))
            }
            _ => Some("failed for reasons unknown".into()),
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut state = self.world.state();
        state.oracle.handler_ended(self.place);
        drop(state);
        if !self.over {
            self.failed(self.cause);
        }
    }
}
