//! Supervision by a member of a fleet: reads the shards that are assigned to this worker. The leader also lists
//! the stream's shards, and creates missing rows.

use std::collections::HashSet;
use std::mem;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::next_check::NextCheck;
use super::{RELIST, Supervisor, TAKEN_AT_ONCE, UNREADABLE_CHECK};
use crate::checkpoint::{self, Checkpoint, LeaseOutcome, Leases, Sharing};
use crate::consumer::calls::{STORE, answer};
use crate::consumer::error::ConsumerError;
use crate::consumer::fleet::Fleet;
use crate::consumer::shard::shard_end::ShardEnd;
use crate::consumer::shards::discovery::Problem;
use crate::consumer::shards::lineage::Lineage;
use crate::failure::BoxError;
use crate::processor::Handler;
use crate::record::{Position, ShardId};

impl<P: Handler + 'static> Supervisor<P> {
    /// Joins the fleet. Returns `None` if the store does not share its shards.
    pub(super) async fn join_fleet(&mut self) -> Result<Option<Fleet>, ConsumerError> {
        let store = self.context.settings.checkpoints.clone();
        let Some(sharing) = checkpoint::sharing(&*store) else {
            return Ok(None);
        };
        self.context.discovery().announce(sharing).await?;
        let rng = self.context.rng();
        let context = &self.context;
        let (application, stream) = (&context.application, context.settings.stream.shared_name());
        Ok(Fleet::start(
            &store,
            application,
            &stream,
            &context.observers,
            rng,
        ))
    }

    /// Reads the assigned shards, until all shards of the stream have ended or nothing more can be settled.
    pub(super) async fn supervise_member(&mut self, fleet: &mut Fleet) -> Result<(), ConsumerError> {
        let store = self.context.settings.checkpoints.clone();
        let Some(leases) = store.leases() else {
            return Ok(());
        };
        let Some(sharing) = leases.sharing() else {
            return Ok(());
        };
        self.report_started(self.context.facts.open_shards().unwrap_or_default());
        let mut next_survey = NextCheck::default();
        loop {
            let is_survey_due = next_survey.time().is_some_and(|time| time <= Instant::now());
            if fleet.is_leader() && (fleet.is_survey_due() || is_survey_due) {
                let is_listed = self.survey(fleet, leases, sharing, &mut next_survey).await?;
                if is_listed && self.tasks.is_idle() && next_survey.time().is_none() && self.is_over() {
                    return Ok(());
                }
            }
            self.start_assigned(fleet, leases, sharing).await?;
            loop {
                if self.context.failed.is_some() && self.tasks.is_idle() {
                    return Ok(());
                }
                let next_check = [
                    self.next_check.time(),
                    next_survey.time().filter(|_| fleet.is_leader()),
                ];
                let next_check = next_check.into_iter().flatten().min();
                tokio::select! {
                    biased;
                    Some((id, end)) = self.tasks.next_end() => {
                        let restarts = matches!(end, ShardEnd::CrashLoopOver | ShardEnd::PositionRefused);
                        let restarts = self.tasks.get(id).filter(|_| restarts).cloned();
                        let is_check_due = self.task_ended(id, end);
                        if let Some(error) = self.refused.take() {
                            return Err(error);
                        }
                        if let Some(started) = restarts {
                            fleet.keep(started.shard);
                        }
                        if is_check_due {
                            break;
                        }
                    }
                    () = fleet.changed() => break,
                    () = sleep_until(next_check.unwrap_or_else(Instant::now)), if next_check.is_some() => break,
                }
            }
        }
    }

    /// Lists the stream's shards and creates the missing rows. Shards are assigned and started meanwhile. Returns
    /// false if this worker has lost the leadership before the shards were listed.
    async fn survey(
        &mut self,
        fleet: &mut Fleet,
        leases: &dyn Leases,
        sharing: &dyn Sharing,
        next_survey: &mut NextCheck,
    ) -> Result<bool, ConsumerError> {
        let start = self.context.settings.start.clone();
        let mut found = loop {
            tokio::select! {
                biased;
                found = async { self.context.discovery().first_shards(&start).await } => break found?,
                () = fleet.changed() => {}
            }
            if !fleet.is_leader() {
                return Ok(false);
            }
            self.start_assigned(fleet, leases, sharing).await?;
        };
        next_survey.clear();
        self.listed = found.shards.iter().map(|shard| shard.shard_id().into()).collect();
        // The checks below schedule the next survey, not the next start of assigned shards.
        let next_check = mem::replace(&mut self.next_check, mem::take(next_survey));
        let created = match self.create_missing(leases, &mut found).await {
            Ok(()) => self.take_over_outdated(fleet, sharing, &found).await,
            failed => failed,
        };
        if let Err(error) = created {
            self.context.report_failure(&*error, RELIST);
            self.next_check.within(RELIST);
        }
        *next_survey = mem::replace(&mut self.next_check, next_check);
        fleet.note_survey();
        Ok(true)
    }

    async fn create_missing(&mut self, leases: &dyn Leases, found: &mut Lineage) -> Result<(), BoxError> {
        self.known.complete(found);
        self.has_begun |= !found.checkpoints.is_empty();
        if let Some(delay) = self.known.doubt_ends(found) {
            self.next_check.within(delay);
        }
        self.audit_hash_keys(found.hole());
        if !found.unreadable.is_empty() {
            self.next_check.within(UNREADABLE_CHECK);
        }
        let ready = found.ready();
        self.trimmed
            .report_absent_parents(&mut self.context, &ready, found, self.has_begun);
        for error in found.hidden.values() {
            self.context.report_failure(&**error, RELIST);
            self.next_check.within(RELIST);
        }
        let lacking = ready.into_iter().filter(|shard| !found.has_row(shard));
        let lacking = lacking.map(|shard| (shard, Checkpoint::at(Position::TrimHorizon)));
        let lacking: Vec<_> = lacking.collect();
        self.context.discovery().create(leases, found, lacking).await
    }

    /// Assigns to this worker the shards whose rows say that they have ended, and that are open: the rows belong
    /// to an earlier stream. No leader assigns a shard that has ended.
    async fn take_over_outdated(
        &mut self,
        fleet: &Fleet,
        sharing: &dyn Sharing,
        found: &Lineage,
    ) -> Result<(), BoxError> {
        let ended = found.outdated.iter().filter(|(_, row)| is_end(row));
        let ended: Vec<ShardId> = ended.map(|(shard, _)| shard.clone()).collect();
        if ended.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = ended
            .iter()
            .map(|shard| self.context.key(shard.clone()))
            .collect();
        for row in answer(STORE, sharing.rows(&keys)).await? {
            if let Some(row) = row?.filter(|row| is_end(&row.checkpoint)) {
                answer(STORE, sharing.assign(&row, sharing.worker())).await??;
                self.outdated_ends.insert(row.key.shard);
            }
        }
        fleet.look();
        Ok(())
    }

    /// Starts the shards that are assigned to this worker and that are not started yet. Keeps the leases of
    /// those that wait for their parents, have ended or have halted.
    async fn start_assigned(
        &mut self,
        fleet: &mut Fleet,
        leases: &dyn Leases,
        sharing: &dyn Sharing,
    ) -> Result<(), ConsumerError> {
        self.next_check.clear();
        let mut assigned = fleet.assigned();
        self.context.settings.health.assigned(assigned.len());
        assigned.retain(|shard| !self.is_settled_here(fleet, shard));
        if assigned.is_empty() {
            self.context.settings.health.discovered();
            return Ok(());
        }
        // Whatever is not started now is checked again.
        let again = leases.failover_time() / 3;
        let mut found = match self.context.discovery().assigned(sharing, &assigned).await {
            Ok(found) => found,
            Err(Problem::Final(error)) => return Err(error),
            Err(Problem::Refused(error)) => {
                self.look_again(&error.into(), again);
                return Ok(());
            }
            Err(Problem::Passing(error)) => {
                self.look_again(&error, again);
                return Ok(());
            }
        };
        self.context.settings.health.discovered();
        found.set_aside_ends(&self.outdated_ends);
        self.known.complete(&mut found);
        let ready: HashSet<ShardId> = found.ready().into_iter().collect();
        let (ready, waiting): (Vec<ShardId>, Vec<ShardId>) = assigned
            .into_iter()
            .partition(|shard| ready.contains(shard) && !self.halted.contains(shard));
        let mut startable = Vec::with_capacity(ready.len());
        for shard in ready {
            match self.restarts.has_failed(&shard) && self.is_trimmed(&shard).await {
                true => self.end_trimmed_shard(&shard, &mut found, again).await,
                false => startable.push(shard),
            }
        }
        // Each chunk is started before the next one is taken: a lease that is not renewed in time is lost.
        for shards in startable.chunks(TAKEN_AT_ONCE) {
            let adopted = self.context.discovery().adopt(sharing, shards.to_vec()).await;
            let adopted = adopted.unwrap_or_else(|error| {
                self.context.report_failure(&*error, again);
                Vec::new()
            });
            for taken in adopted {
                self.start_taken(leases, taken, &mut found).await;
            }
        }
        for shard in &startable {
            match self.tasks.contains(shard) {
                true => {
                    fleet.stop_keeping(shard);
                    self.outdated_ends.remove(shard);
                }
                false => self.next_check.within(again),
            }
        }
        self.keep_waiting(fleet, sharing, waiting, again).await;
        Ok(())
    }

    /// Returns true if Kinesis does not have the shard any more.
    async fn is_trimmed(&mut self, shard: &ShardId) -> bool {
        matches!(self.context.discovery().exists(shard).await, Ok(false))
    }

    async fn end_trimmed_shard(&mut self, shard: &ShardId, found: &mut Lineage, again: Duration) {
        let (context, known) = (&mut self.context, &mut self.known);
        if let Err(error) = self.trimmed.end(context, shard, found, known).await {
            self.context.report_failure(&*error, again);
        }
        self.next_check.within(again);
    }

    fn look_again(&mut self, error: &BoxError, delay: Duration) {
        self.context.report_failure(&**error, delay);
        self.next_check.within(delay);
    }

    /// Returns true if nothing is to be done for an assigned shard.
    fn is_settled_here(&self, fleet: &Fleet, shard: &ShardId) -> bool {
        let is_waiting = !self.known.has_ended(shard) && !self.halted.contains(shard);
        match fleet.keeps(shard) {
            true => !is_waiting,
            false => self.tasks.contains(shard),
        }
    }

    /// Takes up the leases of shards that are not read now, and renews them.
    async fn keep_waiting(
        &mut self,
        fleet: &Fleet,
        sharing: &dyn Sharing,
        mut waiting: Vec<ShardId>,
        again: Duration,
    ) {
        if !waiting.is_empty() {
            self.next_check.within(again);
        }
        waiting.retain(|shard| !fleet.keeps(shard));
        if waiting.is_empty() {
            return;
        }
        match self.context.discovery().adopt(sharing, waiting).await {
            Ok(adopted) => {
                for taken in adopted {
                    if let Ok(LeaseOutcome::Leased(checkpoint)) = taken.outcome {
                        if is_end(&checkpoint) {
                            self.known.note_end(taken.shard.clone());
                        }
                        fleet.keep(taken.shard);
                    }
                }
            }
            Err(error) => self.context.report_failure(&*error, again),
        }
    }
}

fn is_end(checkpoint: &Checkpoint) -> bool {
    *checkpoint.position() == Position::ShardEnd
}
