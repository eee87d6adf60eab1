//! One run of a replay, from the first message to the last.

use std::collections::HashSet;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::RngExt as _;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::ledger::{Entry, Key, Ledger, LedgerError, State};
use super::pace::Pace;
use super::reader::Found;
use super::report::{Outcome, Report, Said};
use super::source::{DeadLetterSource, Message};
use super::target::{Job, Sent, Target};
use super::through::record;
use super::{Replay, ReplayError};
use crate::dead_letter::DeadLetter;
use crate::idempotency::Claimed;
use crate::letter_id::LetterId;
use crate::record::Redriven;

pub(super) struct Run<T> {
    replay: Replay,
    ledger: Arc<dyn Ledger>,
    target: T,
    /// For the ledger's target.
    target_name: String,
    /// Of this run, and of nobody else.
    id: String,
    pace: Pace,
    lock: Lock,
    report: Report,
}

/// The most letters that go to the target, and into the ledger, at once: what a PutRecords request takes.
const BATCH: usize = 500;
/// By how much the clock of whoever wrote a letter may be behind ours.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// A message and what was found in it.
struct Opened {
    message: Message,
    letters: Vec<Opening>,
}

struct Opening {
    letter: Option<Box<DeadLetter>>,
    /// None while it is to be driven again.
    outcome: Option<Outcome>,
}

impl<T: Target> Run<T> {
    pub(super) fn new(replay: Replay, ledger: Arc<dyn Ledger>, target: T) -> Self {
        let id = format!("replay-{:016x}", rand::rng().random::<u64>());
        Run {
            target_name: target.name(),
            pace: Pace::new(replay.rate),
            lock: Lock::new(ledger.clone(), replay.source.name(), id.clone()),
            report: Report {
                in_order: replay.source.keeps_order(),
                ..Report::default()
            },
            replay,
            ledger,
            target,
            id,
        }
    }

    pub(super) async fn until_the_end(
        mut self,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<Report, ReplayError> {
        let stopped = CancellationToken::new();
        let result = {
            let mut work = pin!(self.work(&stopped));
            tokio::select! {
                result = &mut work => result,
                () = stop => {
                    stopped.cancel();
                    work.await
                }
            }
        };
        self.report.stopped = stopped.is_cancelled() && result.is_ok();
        result.map(|()| self.report)
    }

    async fn work(&mut self, stop: &CancellationToken) -> Result<(), ReplayError> {
        if !self.replay.dry_run {
            self.lock.take().await?;
        }
        let result = self.pages(stop).await;
        if result.is_ok() {
            self.report.rest = self.replay.source.rest().await;
        }
        let closed = self.replay.source.close().await;
        let unlocked = self.lock.give_back().await;
        result?;
        closed?;
        Ok(unlocked?)
    }

    async fn pages(&mut self, stop: &CancellationToken) -> Result<(), ReplayError> {
        while !stop.is_cancelled() {
            let page = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                page = self.lock.kept_while(self.replay.source.read()) => page??,
            };
            if page.is_empty() {
                return Ok(());
            }
            let (mut opened, mut letters) = (Vec::new(), 0);
            for message in page {
                self.report.read += 1;
                let message = self.open(message).await?;
                letters += message.letters.len();
                opened.push(message);
                if letters >= self.pace.batch(BATCH) {
                    self.work_on(std::mem::take(&mut opened), stop).await?;
                    letters = 0;
                    if stop.is_cancelled() {
                        return Ok(());
                    }
                }
            }
            self.work_on(opened, stop).await?;
        }
        Ok(())
    }

    /// What is in a message, and what can be said of it at a glance.
    async fn open(&mut self, message: Message) -> Result<Opened, ReplayError> {
        let mut letters = Vec::new();
        for found in self.replay.reader.read(&message).await? {
            letters.push(match found {
                Found::Not(outcome) => Opening {
                    letter: None,
                    outcome: Some(outcome),
                },
                Found::Letter(letter) => self.glance(letter).await,
            });
        }
        Ok(Opened { message, letters })
    }

    async fn glance(&mut self, letter: Box<DeadLetter>) -> Opening {
        let drives = self.target.drives();
        let mut letter = letter;
        let outcome = if !self.replay.filter.matches(&letter) {
            Some(Outcome::NotMatched)
        } else if drives && letter.redacted {
            Some(Outcome::Redacted)
        } else if drives && letter.payload_at.is_some() && !self.replay.dry_run {
            match self.replay.fetch_payload(&letter).await {
                Ok(whole) => {
                    *letter = whole;
                    None
                }
                Err(error) => Some(Outcome::NoPayload(error)),
            }
        } else {
            None
        };
        Opening {
            letter: Some(letter),
            outcome,
        }
    }

    async fn work_on(
        &mut self,
        mut opened: Vec<Opened>,
        stop: &CancellationToken,
    ) -> Result<(), ReplayError> {
        let jobs = self.choose(&mut opened).await?;
        // What is confirmed is done, also where more was not taken.
        let failed = match jobs.is_empty() {
            true => None,
            false => self.send(jobs, &mut opened, stop).await?,
        };
        settle_copies(&mut opened);
        self.tell(&opened);
        self.remove(opened).await?;
        match failed {
            None => Ok(()),
            Some(source) => Err(ReplayError::Target {
                target: self.target_name.clone(),
                source,
            }),
        }
    }

    /// Which letters are to be driven again, as far as their filters left them. By message and letter.
    async fn choose(&mut self, opened: &mut [Opened]) -> Result<Vec<(usize, usize, Job)>, ReplayError> {
        self.drop_completed(opened).await?;
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
                // A letter may be written, and a queue may give it, more than once.
                Ok(job) if !chosen.insert(job.letter.id) => opening.outcome = Some(Outcome::Copy),
                Ok(job) => jobs.push((message, place, job)),
                Err(outcome) => opening.outcome = Some(outcome),
            }
        }
        if self.replay.dry_run {
            for (message, place, _) in jobs.drain(..) {
                opened[message].letters[place].outcome = Some(Outcome::Would);
            }
        }
        Ok(jobs)
    }

    fn judge(
        &self,
        letter: &DeadLetter,
        of_letter: Option<Entry>,
        of_record: Option<Entry>,
    ) -> Result<Job, Outcome> {
        if let Some(Entry {
            state: State::Done, ..
        }) = of_letter
            && !self.replay.again
        {
            return Err(Outcome::Already);
        }
        let (mut origin, mut count) = (letter.origin, letter.redrive_count);
        if self.target.drives()
            && let Some(entry) = of_record
        {
            let returned = match self.is_told_by_content(letter) {
                // Another record like it may have failed before.
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
            return Err(Outcome::TooOften { count });
        }
        let arrived_at = letter.first_arrived_at.or(letter.arrived_at);
        Ok(Job {
            letter: letter.clone(),
            redriven: Redriven::new(origin, count.saturating_add(1), arrived_at),
            maybe_again: of_letter.is_some_and(|entry| entry.state == State::Begun),
        })
    }

    /// Whether it can be a returned one without saying so.
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
        let keys: Vec<_> = suspects
            .iter()
            .filter_map(|opening| opening.letter.as_ref())
            .map(|letter| {
                let redriven = Redriven::new(letter.origin, 1, None);
                idempotency.key_of(&letter.application, &record(letter, &redriven))
            })
            .collect();
        let answers = idempotency.store.completed(&keys, idempotency.now()).await;
        for (opening, answer) in suspects.iter_mut().zip(answers) {
            if let Some(Claimed::Completed { .. }) = answer? {
                opening.outcome = Some(Outcome::Completed);
            }
        }
        Ok(())
    }

    /// What kept the target from taking more, if something did.
    async fn send(
        &mut self,
        jobs: Vec<(usize, usize, Job)>,
        opened: &mut [Opened],
        stop: &CancellationToken,
    ) -> Result<Option<crate::BoxError>, ReplayError> {
        let mut jobs = jobs;
        let mut failed = None;
        while !jobs.is_empty() {
            let most = self.pace.batch(BATCH).min(jobs.len());
            let batch: Vec<_> = jobs.drain(..most).collect();
            let (places, batch): (Vec<_>, Vec<Job>) = batch
                .into_iter()
                .map(|(message, place, job)| ((message, place), job))
                .unzip();
            let outcomes = match failed.is_some() || stop.is_cancelled() {
                true => batch.iter().map(|_| Outcome::Behind).collect(),
                false => {
                    let sent = self.send_batch(&batch, stop).await?;
                    failed = sent.failed;
                    sent.outcomes
                }
            };
            for ((message, place), outcome) in places.into_iter().zip(outcomes) {
                opened[message].letters[place].outcome = Some(outcome);
            }
        }
        Ok(failed)
    }

    async fn send_batch(&mut self, batch: &[Job], stop: &CancellationToken) -> Result<Sent, ReplayError> {
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                let outcomes = batch.iter().map(|_| Outcome::Behind).collect();
                return Ok(Sent { outcomes, failed: None });
            }
            kept = self.lock.kept_while(self.pace.turn(batch.len())) => kept?,
        }
        let begun: Vec<_> = batch.iter().map(|job| self.entry(job, State::Begun)).collect();
        self.ledger.write(&begun).await?;
        let sending = self.target.send(batch, stop);
        let sent = self
            .lock
            .kept_while(kept(&mut *self.replay.source, sending))
            .await?;
        let done = batch
            .iter()
            .zip(&sent.outcomes)
            .filter(|(_, outcome)| outcome.is_done());
        let mut entries = Vec::new();
        for (job, outcome) in done {
            entries.push(self.entry(job, State::Done));
            if self.target.drives() && !matches!(outcome, Outcome::Duplicate) {
                entries.push(self.entry_of_record(job));
            }
        }
        if !entries.is_empty() {
            self.ledger.write(&entries).await?;
        }
        Ok(sent)
    }

    fn entry(&self, job: &Job, state: State) -> (Key, Entry) {
        let Redriven { origin, count, .. } = job.redriven;
        let entry = Entry::new(state, origin, count, self.id.as_str(), SystemTime::now());
        (Key::letter(&self.target_name, job.letter.id), entry)
    }

    /// By what it will be known if it comes back.
    fn entry_of_record(&self, job: &Job) -> (Key, Entry) {
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

    fn tell(&mut self, opened: &[Opened]) {
        for opened in opened {
            for opening in &opened.letters {
                let Some(outcome) = &opening.outcome else { continue };
                self.report.count(outcome);
                if let Some(heard) = &mut self.replay.heard {
                    let said = Said {
                        place: &opened.message.place,
                        letter: opening.letter.as_deref(),
                        outcome,
                    };
                    heard(&said, &self.report);
                }
            }
        }
    }

    /// Those of which all is done.
    async fn remove(&mut self, opened: Vec<Opened>) -> Result<(), ReplayError> {
        if !self.replay.source.removes() || self.replay.dry_run {
            return Ok(());
        }
        let is_done = |opening: &Opening| opening.outcome.as_ref().is_some_and(Outcome::is_done);
        let handles: Vec<_> = opened
            .into_iter()
            .filter(|opened| !opened.letters.is_empty() && opened.letters.iter().all(is_done))
            .map(|opened| opened.message.handle)
            .collect();
        let removed = self.replay.source.remove(&handles).await;
        for result in removed {
            match result {
                Ok(()) => self.report.removed += 1,
                Err(error) => {
                    self.report.not_removed += 1;
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a letter that is done cannot be removed; the next run removes it"
                    );
                }
            }
        }
        Ok(())
    }
}

/// A copy is done if the one that was chosen is.
fn settle_copies(opened: &mut [Opened]) {
    let openings = || opened.iter().flat_map(|opened| &opened.letters);
    let is_copy = |opening: &&Opening| matches!(opening.outcome, Some(Outcome::Copy));
    if openings().filter(is_copy).count() == 0 {
        return;
    }
    let done: HashSet<LetterId> = openings()
        .filter(|opening| opening.outcome.as_ref().is_some_and(Outcome::is_done))
        .filter_map(|opening| Some(opening.letter.as_ref()?.id))
        .collect();
    for opening in opened.iter_mut().flat_map(|opened| &mut opened.letters) {
        if let (Some(letter), Some(Outcome::Copy)) = (&opening.letter, &opening.outcome) {
            opening.outcome = Some(match done.contains(&letter.id) {
                true => Outcome::Already,
                false => Outcome::Copy,
            });
        }
    }
}

impl Replay {
    #[cfg(feature = "s3")]
    async fn fetch_payload(&self, letter: &DeadLetter) -> Result<DeadLetter, crate::BoxError> {
        use crate::dead_letter::S3;
        let place = letter.payload_at.as_deref().unwrap_or_default();
        let bucket = place
            .strip_prefix("s3://")
            .and_then(|place| place.split('/').next());
        match (&self.payloads, bucket) {
            (Some(client), Some(bucket)) => {
                let store = S3::new(client.clone(), bucket);
                Ok(store.redeem(letter.clone()).await?)
            }
            (None, _) => {
                Err(format!("its payload is at {place}, and there is no client to read it with").into())
            }
            _ => Err(format!("its payload is at {place}, which is no object of a bucket").into()),
        }
    }

    #[cfg(not(feature = "s3"))]
    async fn fetch_payload(&self, letter: &DeadLetter) -> Result<DeadLetter, crate::BoxError> {
        let place = letter.payload_at.as_deref().unwrap_or_default();
        Err(format!("its payload is at {place}, which is read with the feature `s3`").into())
    }
}

/// Works while the source keeps what it was given.
async fn kept<O>(source: &mut dyn DeadLetterSource, work: impl Future<Output = O>) -> O {
    let Some(interval) = source.keep_interval() else {
        return work.await;
    };
    let mut work = pin!(work);
    loop {
        let due = Instant::now() + interval;
        tokio::select! {
            biased;
            output = &mut work => return output,
            () = sleep_until(due) => {}
        }
        // Others may read it then, and the ledger tells them what is done.
        if let Err(error) = source.keep().await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "letters that are worked on cannot be kept from others"
            );
        }
    }
}

/// The ledger's lock on the source.
struct Lock {
    ledger: Arc<dyn Ledger>,
    source: String,
    owner: String,
    taken: bool,
    renew_at: Instant,
}

impl Lock {
    fn new(ledger: Arc<dyn Ledger>, source: String, owner: String) -> Self {
        Lock {
            ledger,
            source,
            owner,
            taken: false,
            renew_at: Instant::now(),
        }
    }

    async fn take(&mut self) -> Result<(), LedgerError> {
        self.ledger.lock(&self.source, &self.owner).await?;
        self.taken = true;
        if let Some(time) = self.ledger.lock_time() {
            self.renew_at = Instant::now() + time / 4;
        }
        Ok(())
    }

    async fn give_back(&mut self) -> Result<(), LedgerError> {
        match self.taken {
            true => self.ledger.unlock(&self.source, &self.owner).await,
            false => Ok(()),
        }
    }

    /// Works while the lock is renewed. If it cannot be, the work is still ended: half of it would be repeated.
    async fn kept_while<O>(&mut self, work: impl Future<Output = O>) -> Result<O, LedgerError> {
        if !self.taken || self.ledger.lock_time().is_none() {
            return Ok(work.await);
        }
        let mut work = pin!(work);
        let mut lost = None;
        loop {
            tokio::select! {
                biased;
                output = &mut work => return lost.map_or(Ok(output), Err),
                () = sleep_until(self.renew_at), if lost.is_none() => {
                    lost = self.take().await.err();
                }
            }
        }
    }
}
