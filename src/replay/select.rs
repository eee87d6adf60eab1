//! Selects the dead letters to replay, with what the ledger knows about them.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use super::ReplayError;
use super::ledger::{Entry, Key, State};
use super::opened::{Opened, Opening};
use super::report::Outcome;
use super::run::Run;
use super::target::processor::record;
use super::target::{Job, Target};
use crate::dead_letter::DeadLetter;
use crate::idempotency::Status;
use crate::observer::Observers;
use crate::record::Redriven;
use crate::rfc3339;

/// The maximum time by which the clock of a dead letter's writer may be behind the local clock.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

impl<T: Target> Run<T> {
    /// Selects the dead letters to send, of those that have no outcome yet. Returns each with the index of
    /// its message, and its index within that message.
    pub(super) async fn choose(
        &mut self,
        opened: &mut [Opened],
    ) -> Result<Vec<(usize, usize, Job)>, ReplayError> {
        self.drop_completed(opened).await?;
        self.drop_done(opened).await?;
        let mut places = Vec::new();
        let mut keys = Vec::new();
        for (message, opened) in opened.iter().enumerate() {
            for (place, opening) in opened.letters.iter().enumerate() {
                if let (Some(letter), None) = (&opening.letter, &opening.outcome) {
                    places.push((message, place));
                    keys.push(Key::letter(&self.target_name, letter.id));
                    keys.push(self.key_of_record(letter));
                }
            }
        }
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let mut known = self.ledger.look_up(&keys).await?.into_iter();
        let (mut jobs, mut chosen) = (Vec::new(), HashSet::new());
        for (message, place) in places {
            let (of_letter, of_record) = (known.next().flatten(), known.next().flatten());
            let opening = &mut opened[message].letters[place];
            let Some(letter) = &opening.letter else { continue };
            match self.judge(letter, of_letter, of_record) {
                // Beyond the limit: the dead letter stays without an outcome, as if it had not been read.
                Ok(_) if self.left.is_some_and(|left| jobs.len() as u64 >= left) => {}
                // A sink may write a dead letter more than once, and a queue may deliver it more than once.
                Ok(job) if !chosen.insert(job.letter.id) => opening.outcome = Some(Outcome::DuplicateCopy),
                Ok(job) => jobs.push((message, place, job)),
                Err(outcome) => opening.outcome = Some(outcome),
            }
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(jobs.len() as u64);
        }
        if self.replay.dry_run {
            for (message, place, _) in jobs.drain(..) {
                opened[message].letters[place].outcome = Some(Outcome::DryRun);
            }
        }
        Ok(jobs)
    }

    /// Settles dead letters whose payload is missing but which an earlier run has replayed. A dead letter may
    /// outlive the object of its payload.
    async fn drop_done(&self, opened: &mut [Opened]) -> Result<(), ReplayError> {
        let mut without_payload: Vec<&mut Opening> = opened
            .iter_mut()
            .flat_map(|opened| &mut opened.letters)
            .filter(|opening| matches!(opening.outcome, Some(Outcome::NoPayload(_))))
            .collect();
        if without_payload.is_empty() || self.replay.ignore_ledger {
            return Ok(());
        }
        let letters = without_payload
            .iter()
            .filter_map(|opening| opening.letter.as_ref());
        let keys: Vec<_> = letters
            .map(|letter| Key::letter(&self.target_name, letter.id))
            .collect();
        let known = self.ledger.look_up(&keys).await?;
        for (opening, entry) in without_payload.iter_mut().zip(known) {
            let letter = opening.letter.as_ref();
            if letter
                .zip(entry)
                .is_some_and(|(letter, entry)| self.is_done(letter, &entry))
            {
                opening.outcome = Some(Outcome::AlreadyReplayed);
            }
        }
        Ok(())
    }

    fn judge(
        &self,
        letter: &DeadLetter,
        of_letter: Option<Entry>,
        of_record: Option<Entry>,
    ) -> Result<Job, Outcome> {
        if self.written.may_hold(letter.id) {
            return Err(Outcome::Returned);
        }
        if !self.replay.ignore_ledger
            && of_letter
                .as_ref()
                .is_some_and(|entry| self.is_done(letter, entry))
        {
            return Err(Outcome::AlreadyReplayed);
        }
        let (mut origin, mut count) = (letter.origin, letter.redrive_count);
        if self.target.drives()
            && let Some(entry) = of_record
        {
            let returned = match self.is_told_by_content(letter) {
                // Another record with the same key and payload may have failed before the replay.
                true => letter.dead_lettered_at + CLOCK_SKEW >= entry.at,
                false => letter.redrive_count >= entry.count,
            };
            let since = self.is_told_by_content(letter).then_some(entry.at);
            if returned && entry.run == self.id && since.is_none_or(|at| letter.dead_lettered_at >= at) {
                return Err(Outcome::Returned);
            }
            if returned && entry.count > count {
                (origin, count) = (entry.origin, entry.count);
            }
        }
        if self.target.drives() && count >= self.replay.max_redrives {
            return Err(Outcome::RedriveLimit { count });
        }
        let arrival = letter.first_arrival.or(letter.arrival);
        Ok(Job {
            letter: letter.clone(),
            redriven: Redriven::new(origin, count.saturating_add(1), arrival),
            possibly_repeated: of_letter.is_some_and(|entry| entry.state == State::Begun),
        })
    }

    /// Returns true if an earlier run has finished this dead letter, so that its message can be removed.
    fn is_done(&self, letter: &DeadLetter, entry: &Entry) -> bool {
        // A record that is delivered again, for example after a rewind, and fails again has a dead letter
        // with the same id.
        let is_the_same = entry.letter_at == rfc3339::to_millis(letter.dead_lettered_at);
        // A moved dead letter may have come back since. While its message is in the source, the dead letter
        // is not done.
        let is_there = !self.target.drives() && self.replay.source.removes();
        entry.state == State::Done && is_the_same && !is_there
    }

    /// Returns true if only the content can show whether this dead letter belongs to a replayed record.
    fn is_told_by_content(&self, letter: &DeadLetter) -> bool {
        self.target.is_known_by_content() && letter.redrive_count == 0
    }

    fn key_of_record(&self, letter: &DeadLetter) -> Key {
        match self.is_told_by_content(letter) {
            true => Key::record(
                &self.target_name,
                letter.partition_key.as_deref(),
                &letter.payload,
            ),
            false => Key::origin(&self.target_name, letter.origin),
        }
    }

    async fn drop_completed(&self, opened: &mut [Opened]) -> Result<(), ReplayError> {
        let Some(idempotency) = &self.replay.completed else {
            return Ok(());
        };
        let mut suspects: Vec<&mut Opening> = opened
            .iter_mut()
            .flat_map(|opened| &mut opened.letters)
            .filter(|opening| opening.outcome.is_none())
            .filter(|opening| opening.letter.as_ref().is_some_and(|letter| letter.suspect))
            .collect();
        let log = Observers::log();
        let keys: Vec<_> = suspects
            .iter()
            .filter_map(|opening| opening.letter.as_ref())
            .map(|letter| {
                let redriven = Redriven::new(letter.origin, 1, None);
                idempotency.key_of(&letter.application, &record(letter, &redriven), &log)
            })
            .collect();
        let answers = idempotency.store.status(&keys, idempotency.now()).await;
        for (opening, answer) in suspects.iter_mut().zip(answers) {
            if let Some(Status::Completed { .. }) = answer? {
                opening.outcome = Some(Outcome::Completed);
            }
        }
        Ok(())
    }

    pub(super) fn entry(&self, job: &Job, state: State) -> (Key, Entry) {
        let Redriven { origin, count, .. } = job.redriven;
        let entry = Entry {
            state,
            origin,
            count,
            // Milliseconds, as they are stored.
            letter_at: rfc3339::to_millis(job.letter.dead_lettered_at),
            run: self.id.clone(),
            at: rfc3339::to_millis(SystemTime::now()),
        };
        (Key::letter(&self.target_name, job.letter.id), entry)
    }

    /// Returns the entry that identifies the record if it fails again.
    pub(super) fn entry_of_record(&self, job: &Job) -> (Key, Entry) {
        let (_, entry) = self.entry(job, State::Done);
        let letter = &job.letter;
        let key = match self.target.is_known_by_content() {
            true => Key::record(
                &self.target_name,
                letter.partition_key.as_deref(),
                &letter.payload,
            ),
            false => Key::origin(&self.target_name, job.redriven.origin),
        };
        (key, entry)
    }
}
