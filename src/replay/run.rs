//! One run of a replay, from the first message to the last.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use rand::RngExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ledger::{Ledger, State};
use super::opened::{Opened, Opening, settle_copies};
use super::rate_limit::Pace;
use super::reader::Found;
use super::report::{Outcome, Progress, Report};
use super::source::{Message, SourceError};
use super::source_lock::{Lock, kept};
use super::target::{Job, Sent, Target};
use super::written::Written;
use super::{Replay, ReplayError};
use crate::dead_letter::DeadLetter;
use crate::external::caught;
use crate::failure::{BoxError, texts};

pub(super) struct Run<T> {
    pub(super) replay: Replay,
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) target: T,
    /// The target's name in the ledger.
    pub(super) target_name: String,
    /// The id of this run, unique among all runs.
    pub(super) id: String,
    pace: Pace,
    lock: Lock,
    /// The time at which the source must next keep its messages hidden.
    keep_at: Instant,
    report: Report,
    /// True once the user's function that receives outcomes has panicked.
    is_deaf: bool,
    pub(super) written: Written,
    /// The number of dead letters that may still be sent. `None`: no limit.
    pub(super) left: Option<u64>,
}

/// The maximum number of dead letters that go to the target, and into the ledger, at once: the limit of a
/// PutRecords request.
const BATCH: usize = 500;

impl<T: Target> Run<T> {
    pub(super) fn new(replay: Replay, ledger: Arc<dyn Ledger>, target: T) -> Self {
        let id = format!("replay-{:016x}", rand::rng().random::<u64>());
        Run {
            target_name: target.name(),
            pace: Pace::new(replay.rate),
            keep_at: Instant::now(),
            lock: Lock::new(ledger.clone(), replay.source.name(), id.clone()),
            report: Report {
                in_order: replay.source.keeps_order(),
                ..Report::default()
            },
            is_deaf: false,
            written: Written::default(),
            left: replay.limit,
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
        if result.is_ok() && !self.report.limit_reached {
            self.report.rest = self.replay.source.rest().await;
        }
        let closed = self.replay.source.close().await;
        let unlocked = self.lock.give_back().await;
        result?;
        closed?;
        Ok(unlocked?)
    }

    async fn pages(&mut self, stop: &CancellationToken) -> Result<(), ReplayError> {
        while !stop.is_cancelled() && !self.is_at_limit() {
            let page = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                page = self.lock.kept_while(self.replay.source.read()) => page??,
            };
            if page.is_empty() {
                return Ok(());
            }
            self.written.next_page();
            let interval = self.replay.source.keep_interval();
            self.keep_at = Instant::now() + interval.unwrap_or_default();
            let (mut opened, mut letters) = (Vec::new(), 0);
            for message in page {
                self.report.read += 1;
                let message = self.open(message).await?;
                letters += message.letters.len();
                opened.push(message);
                if letters >= self.pace.batch(BATCH) {
                    self.work_on(std::mem::take(&mut opened), stop).await?;
                    letters = 0;
                    if stop.is_cancelled() || self.is_at_limit() {
                        return Ok(());
                    }
                }
            }
            self.work_on(opened, stop).await?;
        }
        Ok(())
    }

    fn is_at_limit(&mut self) -> bool {
        self.report.limit_reached = self.left == Some(0);
        self.report.limit_reached
    }

    /// Reads the content of a message, and sets the outcomes that need neither the ledger nor the target.
    async fn open(&mut self, message: Message) -> Result<Opened, ReplayError> {
        let mut letters = Vec::new();
        let reading = self.replay.reader.read(&message);
        let reading = kept(&mut *self.replay.source, &mut self.keep_at, reading);
        for found in self.lock.kept_while(reading).await?? {
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
        // Dead letters that the target has confirmed are done, even if it did not accept the others.
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

    /// Sends the jobs and sets their outcomes. Returns the error of a target that failed.
    async fn send(
        &mut self,
        jobs: Vec<(usize, usize, Job)>,
        opened: &mut [Opened],
        stop: &CancellationToken,
    ) -> Result<Option<BoxError>, ReplayError> {
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
                true => batch.iter().map(|_| Outcome::Blocked).collect(),
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
        let turn = kept(
            &mut *self.replay.source,
            &mut self.keep_at,
            self.pace.turn(batch.len()),
        );
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                let outcomes = batch.iter().map(|_| Outcome::Blocked).collect();
                return Ok(Sent { outcomes, failed: None });
            }
            kept = self.lock.kept_while(turn) => kept?,
        }
        let begun: Vec<_> = batch.iter().map(|job| self.entry(job, State::Begun)).collect();
        self.ledger.write(&begun).await?;
        let sending = self.target.send(batch, stop);
        let sent = self
            .lock
            .kept_while(kept(&mut *self.replay.source, &mut self.keep_at, sending))
            .await?;
        let done = batch
            .iter()
            .zip(&sent.outcomes)
            .filter(|(_, outcome)| outcome.is_done());
        let mut entries = Vec::new();
        for (job, outcome) in done {
            if !self.target.drives() && self.replay.source.removes() {
                self.written.add(job.letter.id);
            }
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

    fn tell(&mut self, opened: &[Opened]) {
        for opened in opened {
            for opening in &opened.letters {
                let Some(outcome) = &opening.outcome else { continue };
                self.report.count(outcome);
                if let Some(heard) = &mut self.replay.heard {
                    let said = Progress {
                        place: &opened.message.place,
                        letter: opening.letter.as_deref(),
                        outcome,
                    };
                    // The dead letter is settled anyway: the run continues and removes its message.
                    if caught(|| heard(&said, &self.report)).is_none() && !self.is_deaf {
                        self.is_deaf = true;
                        tracing::error!("the function given to on_progress panicked; this is logged once");
                    }
                }
            }
        }
    }

    /// Removes the messages whose dead letters are all done.
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
        let mut removed = self.replay.source.remove(&handles).await;
        // A message for which the source gives no result counts as not removed.
        removed.resize_with(handles.len(), || {
            Err(SourceError::unavailable(
                self.lock.source(),
                "the source gave no result for a message",
            ))
        });
        for result in removed {
            match result {
                Ok(()) => self.report.removed += 1,
                Err(error) => {
                    self.report.not_removed += 1;
                    tracing::warn!(
                        error = texts(&error),
                        "settled message not removed; the next run removes it"
                    );
                }
            }
        }
        Ok(())
    }
}
