//! One invocation: from the event to the answer.

use std::env;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use futures_util::stream;
use lambda_runtime::{Diagnostic, LambdaEvent, service_fn};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::{Instrument as _, debug_span};

use super::{Event, Response};
use crate::checkpoint::Checkpoint;
use crate::dead_letter::check_target;
use crate::dead_letter::{SourceStream, TargetError};
use crate::engine::{Resilient, Within};
use crate::external::Unusable;
use crate::failure::{BoxError, texts};
use crate::idempotency::StoreError;
use crate::kpl::Deaggregator;
use crate::kpl::expand::unpack;
use crate::observer::{Event as Observed, Interest};
use crate::pipeline::{Batch, Pipeline, Progress};
use crate::processor::RecordProcessor;
use crate::record::{Position, Record, SequenceNumber};

/// The environment variable that says, if it is `1`, that the event source mapping has
/// `FunctionResponseTypes: [ReportBatchItemFailures]`.
pub const PARTIAL_RESPONSES: &str = "REDRIVE_PARTIAL_RESPONSES";

/// A processor as a Lambda function.
///
/// | setting | default |
/// |---|---|
/// | [`partial_responses`](Function::partial_responses) | the environment variable [`PARTIAL_RESPONSES`], else off |
/// | [`reserve`](Function::reserve) | a tenth of the time that the invocation has, 200 ms to 5 s |
/// | [`pipeline`](Function::pipeline) | [`Pipeline::default`] |
#[derive(Debug)]
#[must_use]
pub struct Function<P: RecordProcessor> {
    resilient: Resilient<P>,
    pipeline: Pipeline,
    deaggregator: Deaggregator,
    partial_responses: bool,
    reserve: Option<Duration>,
    /// Whether the sink's target was checked.
    checked: OnceCell<()>,
}

/// An invocation after which Lambda sends the whole batch again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvocationError {
    /// Not everything is settled, and nobody said that the mapping reports item failures.
    #[error(
        "{unsettled} records of the batch are not settled, from {sequence_number} on; Lambda sends the whole batch \
         again, as nobody said that the mapping has ReportBatchItemFailures (.partial_responses(true))"
    )]
    #[non_exhaustive]
    Unfinished {
        /// How many.
        unsettled: usize,
        /// The first of them.
        sequence_number: SequenceNumber,
    },
    /// The dead-letter sink's target must not be used: nothing is processed.
    #[error(transparent)]
    DeadLetters(#[from] TargetError),
    /// The idempotency store cannot be used: nothing is processed.
    #[error(transparent)]
    Idempotency(#[from] StoreError),
    /// The state that Lambda hands on is none of the window's: another version of the function may have left it.
    #[error("the state of the tumbling window cannot be read")]
    State(#[source] BoxError),
    /// What is done at the end of a window has failed.
    #[error("the tumbling window could not be finished")]
    Finish(#[source] BoxError),
}

/// After this many processes died while they processed the same record, an invocation processes one record at a time.
const SUSPICIOUS: u32 = 2;

/// How far a batch is settled.
pub(super) enum Outcome {
    Settled,
    Unsettled { unsettled: usize, first: SequenceNumber },
}

impl From<InvocationError> for Diagnostic {
    fn from(error: InvocationError) -> Self {
        let name = match &error {
            InvocationError::Unfinished { .. } => "Unfinished",
            InvocationError::DeadLetters(_) => "DeadLetters",
            InvocationError::Idempotency(_) => "Idempotency",
            InvocationError::State(_) => "State",
            InvocationError::Finish(_) => "Finish",
        };
        Diagnostic {
            error_type: name.to_owned(),
            error_message: texts(&error),
        }
    }
}

/// Runs the processor as the function of this process, with the defaults of [`Function`]; returns if Lambda's runtime
/// API cannot be reached.
///
/// # Panics
///
/// Outside of Lambda, where its environment variables are missing (as `lambda_runtime` does).
pub async fn run<P: RecordProcessor + 'static>(resilient: Resilient<P>) -> Result<(), BoxError> {
    Function::new(resilient).run().await
}

impl<P: RecordProcessor> Function<P> {
    /// With the defaults.
    pub fn new(resilient: Resilient<P>) -> Self {
        Function {
            resilient,
            pipeline: Pipeline::default(),
            deaggregator: Deaggregator::default(),
            partial_responses: env::var(PARTIAL_RESPONSES).is_ok_and(|value| value == "1"),
            reserve: None,
            checked: OnceCell::new(),
        }
    }

    /// Whether the mapping has `FunctionResponseTypes: [ReportBatchItemFailures]`. If it has not, and this says so all
    /// the same, unsettled records are lost.
    pub fn partial_responses(mut self, on: bool) -> Self {
        self.partial_responses = on;
        self
    }

    /// How long before the invocation's deadline the last attempt ends.
    pub fn reserve(mut self, time: Duration) -> Self {
        self.reserve = Some(time);
        self
    }

    /// In which order the records of an invocation are processed, and how many beside each other.
    pub fn pipeline(mut self, pipeline: Pipeline) -> Self {
        self.pipeline = pipeline;
        self
    }

    /// How aggregated records are taken apart.
    pub fn deaggregator(mut self, deaggregator: Deaggregator) -> Self {
        self.deaggregator = deaggregator;
        self
    }

    /// Takes invocations until the process ends.
    ///
    /// # Panics
    ///
    /// Outside of Lambda, where its environment variables are missing (as `lambda_runtime` does).
    pub async fn run(self) -> Result<(), BoxError>
    where
        P: 'static,
    {
        lambda_runtime::run(service_fn(|event| self.handle(event))).await
    }

    /// One invocation, for `lambda_runtime`'s own `run`: `run(service_fn(|event| function.handle(event)))`.
    pub async fn handle(&self, invocation: LambdaEvent<Event>) -> Result<Response, InvocationError> {
        let left = time_left(invocation.context.deadline, SystemTime::now());
        self.settle(invocation.payload, Instant::now() + left).await
    }

    /// Settles what can be settled before this time.
    pub async fn settle(&self, event: Event, deadline: Instant) -> Result<Response, InvocationError> {
        let outcome = self.settle_all(event, deadline).await;
        self.flush();
        self.answer(outcome?)
    }

    /// Nothing runs once the answer is given.
    pub(super) fn flush(&self) {
        self.resilient.observers().flush();
    }

    /// What Lambda is told of it.
    pub(super) fn answer(&self, outcome: Outcome) -> Result<Response, InvocationError> {
        match outcome {
            Outcome::Settled => Ok(Response::settled()),
            Outcome::Unsettled { first, .. } if self.partial_responses => Ok(Response::again_from(first)),
            Outcome::Unsettled { unsettled, first } => Err(InvocationError::Unfinished {
                unsettled,
                sequence_number: first,
            }),
        }
    }

    pub(super) fn processor(&self) -> &P {
        self.resilient.processor()
    }

    pub(super) async fn settle_all(
        &self,
        event: Event,
        deadline: Instant,
    ) -> Result<Outcome, InvocationError> {
        let mut records = Vec::with_capacity(event.records.len());
        for record in event.records {
            unpack(
                &self.deaggregator,
                record,
                self.resilient.observers(),
                &mut records,
            );
        }
        let Some(first) = records.first() else {
            return Ok(Outcome::Settled);
        };
        let span = debug_span!(
            "batch",
            stream = first.stream(),
            shard = first.shard().as_str(),
            sequence_number = first.sequence_number().as_str(),
            records = records.len(),
            unsettled = Empty,
        );
        let outcome = self.settle_records(records, event.arn, deadline);
        let outcome = outcome.instrument(span.clone()).await;
        if let Ok(Outcome::Unsettled { unsettled, .. }) = &outcome {
            span.record("unsettled", unsettled);
        }
        outcome
    }

    async fn settle_records(
        &self,
        records: Vec<Record>,
        arn: Option<String>,
        deadline: Instant,
    ) -> Result<Outcome, InvocationError> {
        let (Some(first), Some(last)) = (records.first(), records.last()) else {
            return Ok(Outcome::Settled);
        };
        let within = self.within(deadline);
        let left = within.attempts_until.saturating_duration_since(Instant::now());
        // A target that does not answer leaves most of the time to the records.
        let checked = timeout(left / 4, self.check(first.stream(), arn));
        checked.await.unwrap_or(Ok(()))?;
        let recalled = timeout_at(within.attempts_until, self.resilient.recall(&records)).await;
        let mut pipeline = self.pipeline.clone().within(within);
        match recalled.unwrap_or(Ok(None))? {
            Some(crashes) if crashes < SUSPICIOUS => {}
            Some(crashes) => {
                self.tell_crashes(first, crashes);
                pipeline = pipeline.one_by_one();
            }
            // As long as it is not known which record ends the process, no other is in hand beside it.
            None => pipeline = pipeline.one_by_one(),
        }
        let stop = CancellationToken::new();
        let (from, progress) = (Checkpoint::at(Position::TrimHorizon), Progress::new());
        let (first, last) = (first.sequence_number().clone(), last.position());
        let count = records.len();
        let batches = stream::iter([Batch::from(records)]);
        let mut running = pin!(pipeline.run_from(&self.resilient, batches, from, &progress, &stop));
        let result = tokio::select! {
            biased;
            // First: where no time is left nothing begins.
            () = sleep_until(within.attempts_until) => {
                stop.cancel();
                running.await
            }
            result = &mut running => result,
        };
        let (unsettled, first) = match result {
            Ok(finished) if finished.complete || *finished.checkpoint.position() == last => {
                return Ok(Outcome::Settled);
            }
            Ok(finished) => match finished.first_unsettled {
                Some(sequence_number) => (finished.unsettled, sequence_number),
                // Nothing was read.
                None => (count, first),
            },
            Err(halted) => (halted.unsettled, halted.first_unsettled),
        };
        Ok(Outcome::Unsettled { unsettled, first })
    }

    fn tell_crashes(&self, first: &Record, crashes: u32) {
        let observers = self.resilient.observers();
        if observers.want(Interest::SHARDS) {
            observers.tell(&Observed::CrashLoopSuspected {
                stream: first.stream(),
                shard: first.shard(),
                starts: crashes,
            });
        }
    }

    /// Checks once whether the dead-letter sink may be used with this stream.
    async fn check(&self, stream: &str, arn: Option<String>) -> Result<(), TargetError> {
        let Some(sink) = self
            .resilient
            .dead_letters()
            .filter(|_| !self.checked.initialized())
        else {
            return Ok(());
        };
        let mut source = SourceStream::new(stream);
        source.arn = arn;
        match check_target(&**sink, &source, self.resilient.observers()).await {
            Ok(()) => {
                let _ = self.checked.set(());
                Ok(())
            }
            Err(Unusable::NotNow(error)) => {
                tracing::warn!(
                    error = texts(&*error),
                    "check of the dead-letter target failed; the next invocation repeats it"
                );
                Ok(())
            }
            Err(Unusable::Never(error)) => Err(error),
        }
    }

    pub(super) fn within(&self, deadline: Instant) -> Within {
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        let bounds = (Duration::from_millis(200), Duration::from_secs(5));
        let reserve = self
            .reserve
            .unwrap_or((left / 10).clamp(bounds.0, bounds.1))
            .min(left);
        // A quarter of it is for the answer.
        Within {
            attempts_until: deadline.checked_sub(reserve).unwrap_or(now),
            finish_by: deadline.checked_sub(reserve / 4).unwrap_or(now),
        }
    }
}

/// Before it the deadline is no time of day: `cargo lambda` says how many milliseconds are left.
const YEAR_2001_MILLIS: u64 = 978_307_200_000;

/// From here on it is a clock's that nobody sets.
pub(super) fn time_left(deadline_millis: u64, now: SystemTime) -> Duration {
    let deadline = Duration::from_millis(deadline_millis);
    if deadline_millis < YEAR_2001_MILLIS {
        return deadline;
    }
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    deadline.saturating_sub(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_a_time_or_what_an_emulator_says() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_000);
        assert_eq!(time_left(1_800_000_002_500, now), Duration::from_millis(2_500));
        assert_eq!(time_left(1_799_999_999_999, now), Duration::ZERO);
        assert_eq!(time_left(600_000, now), Duration::from_secs(600));
        assert_eq!(time_left(0, now), Duration::ZERO);
    }
}
