//! One invocation of a Lambda function, from the event to the answer.

use std::env;
use std::time::{Duration, SystemTime};

use futures_util::stream;
use lambda_runtime::{Diagnostic, LambdaEvent, service_fn};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::field::Empty;
use tracing::{Instrument as _, debug_span};

use super::{Event, Response};
use crate::checkpoint::Checkpoint;
use crate::dead_letter::check_target;
use crate::dead_letter::{SourceStream, TargetError};
use crate::engine::{Resilient, Within};
use crate::failure::{BoxError, texts};
use crate::idempotency::StoreError;
use crate::kpl::Deaggregator;
use crate::kpl::expand::unpack;
use crate::observer::{Event as Observed, Interest, ShardEvent};
use crate::pipeline::{Batch, NoGate, Pipeline, Progress};
use crate::processor::Handler;
use crate::record::{Position, Record, SequenceNumber};
use crate::start_check::Unusable;

/// The environment variable that turns on [partial responses](Function::partial_responses) if it is `1`. Set
/// it only if the event source mapping has `FunctionResponseTypes: [ReportBatchItemFailures]`.
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
pub struct Function<P: Handler> {
    resilient: Resilient<P>,
    pipeline: Pipeline,
    deaggregator: Deaggregator,
    partial_responses: bool,
    reserve: Option<Duration>,
    /// Set after a successful check of the sink's target.
    checked: OnceCell<()>,
}

/// The error of an invocation. Lambda sends the whole batch again after it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvocationError {
    /// Records are not settled, and [partial responses](Function::partial_responses) are off.
    #[error(
        "{unsettled} records of the batch are not settled, from {sequence_number} on; Lambda sends the whole batch \
         again; if the mapping has ReportBatchItemFailures, set .partial_responses(true) to repeat only these records"
    )]
    #[non_exhaustive]
    Unfinished {
        /// The number of unsettled records.
        unsettled: usize,
        /// The sequence number of the first unsettled record.
        sequence_number: SequenceNumber,
    },
    /// The dead-letter sink's target must not be used. No record is processed.
    #[error(transparent)]
    DeadLetters(#[from] TargetError),
    /// The idempotency store cannot be used. No record is processed.
    #[error(transparent)]
    Idempotency(#[from] StoreError),
    /// The state from the previous invocation cannot be read. Another version of the function may have
    /// written it.
    #[error("the state of the tumbling window cannot be read")]
    State(#[source] BoxError),
    /// The work at the end of a window ([`Fold::finish`](super::Fold::finish)) has failed.
    #[error("the tumbling window could not be finished")]
    Finish(#[source] BoxError),
}

/// After this many processes died while they processed the same record, an invocation processes one record at
/// a time.
const SUSPICIOUS: u32 = 2;

/// The outcome of a batch.
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

/// Runs the processor as the Lambda function of this process, with the defaults of [`Function`]. Returns an
/// error if Lambda's runtime API cannot be reached.
///
/// # Panics
///
/// `lambda_runtime` panics outside of Lambda, where Lambda's environment variables are missing.
pub async fn run<P: Handler + 'static>(resilient: Resilient<P>) -> Result<(), BoxError> {
    Function::new(resilient).run().await
}

impl<P: Handler> Function<P> {
    /// Creates a function with the defaults.
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

    /// Sets whether the function reports which records must be sent again. Turn it on only if the mapping has
    /// `FunctionResponseTypes: [ReportBatchItemFailures]`: without that setting, Lambda drops the unsettled
    /// records.
    pub fn partial_responses(mut self, on: bool) -> Self {
        self.partial_responses = on;
        self
    }

    /// Sets the time between the end of the last attempt and the invocation's deadline. Any time is valid. With
    /// zero, Lambda may end the process before the answer. With more than the invocation has, no attempt is
    /// made, and no record is settled.
    pub fn reserve(mut self, time: Duration) -> Self {
        self.reserve = Some(time);
        self
    }

    /// Sets the order in which the records of an invocation are processed, and how many run concurrently.
    pub fn pipeline(mut self, pipeline: Pipeline) -> Self {
        self.pipeline = pipeline;
        self
    }

    /// Sets how aggregated records are unpacked.
    pub fn deaggregator(mut self, deaggregator: Deaggregator) -> Self {
        self.deaggregator = deaggregator;
        self
    }

    /// Handles invocations until the process ends.
    ///
    /// # Panics
    ///
    /// `lambda_runtime` panics outside of Lambda, where Lambda's environment variables are missing.
    pub async fn run(self) -> Result<(), BoxError>
    where
        P: 'static,
    {
        lambda_runtime::run(service_fn(|event| self.handle(event))).await
    }

    /// Handles one invocation, for `lambda_runtime`'s own `run`:
    /// `run(service_fn(|event| function.handle(event)))`.
    pub async fn handle(&self, invocation: LambdaEvent<Event>) -> Result<Response, InvocationError> {
        let left = time_left(invocation.context.deadline, SystemTime::now());
        self.settle(invocation.payload, Instant::now() + left).await
    }

    /// Settles the records that can be settled before the deadline.
    pub async fn settle(&self, event: Event, deadline: Instant) -> Result<Response, InvocationError> {
        let outcome = self.settle_all(event, deadline).await;
        self.flush();
        self.answer(outcome?)
    }

    /// Flushes the observers. Must be called before the answer is given, because nothing runs after it.
    pub(super) fn flush(&self) {
        self.resilient.observers().flush();
    }

    /// Converts the outcome of a batch into the answer to Lambda.
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
        // A target that does not answer uses at most a quarter of the time.
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
            // The store does not show which record may end the process, so only one is in flight at a time.
            None => pipeline = pipeline.one_by_one(),
        }
        let (from, progress) = (Checkpoint::at(Position::TrimHorizon), Progress::new());
        let (first, last) = (first.sequence_number().clone(), last.position());
        let count = records.len();
        let batches = stream::iter([Batch::from(records)]);
        // The pipeline polls the deadline before anything else, so that nothing starts if no time is left.
        let deadline = sleep_until(within.attempts_until);
        let running = pipeline.run_from(&self.resilient, batches, from, &NoGate, &progress, deadline);
        let result = running.await;
        let (unsettled, first) = match result {
            Ok(finished) if finished.complete || *finished.checkpoint.position() == last => {
                return Ok(Outcome::Settled);
            }
            Ok(finished) => match finished.first_unsettled {
                Some(sequence_number) => (finished.unsettled, sequence_number),
                // No record was read.
                None => (count, first),
            },
            Err(halted) => (halted.unsettled, halted.first_unsettled),
        };
        Ok(Outcome::Unsettled { unsettled, first })
    }

    fn tell_crashes(&self, first: &Record, crashes: u32) {
        let observers = self.resilient.observers();
        if observers.want(Interest::SHARDS) {
            observers.tell(&Observed::Shard {
                stream: first.stream(),
                shard: first.shard(),
                event: ShardEvent::CrashLoopSuspected { starts: crashes },
            });
        }
    }

    /// Checks whether the dead-letter sink may be used with this stream, until one check succeeds.
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
        // The last quarter of the reserve is for the answer.
        Within {
            attempts_until: deadline.checked_sub(reserve).unwrap_or(now),
            finish_by: deadline.checked_sub(reserve / 4).unwrap_or(now),
        }
    }
}

/// The smallest deadline that is a point in time. A smaller one is the number of milliseconds that are left,
/// as `cargo lambda` sends it.
const YEAR_2001_MILLIS: u64 = 978_307_200_000;

/// Returns the time that is left until the deadline. The caller measures it with a monotonic clock, so that
/// later changes of the wall clock have no effect.
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
    use crate::processor::processor_fn;

    async fn ok(_: Record) -> Result<(), std::io::Error> {
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn the_documented_defaults() {
        let resilient = Resilient::builder("billing", processor_fn(ok)).without_dead_letters();
        let function = Function::new(resilient.build().expect("valid"));
        let pipeline = format!("{:?}", function.pipeline);
        assert_eq!(pipeline, format!("{:?}", Pipeline::default()));
        assert!(!function.partial_responses, "the environment variable is not set");
        let reserve = |left| {
            let deadline = Instant::now() + Duration::from_millis(left);
            deadline - function.within(deadline).attempts_until
        };
        let millis = Duration::from_millis;
        assert_eq!((reserve(100), reserve(1_000)), (millis(100), millis(200)));
        assert_eq!(
            (reserve(10_000), reserve(900_000)),
            (millis(1_000), millis(5_000))
        );
    }

    #[test]
    fn a_deadline_is_a_time_or_what_an_emulator_says() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_000);
        assert_eq!(time_left(1_800_000_002_500, now), Duration::from_millis(2_500));
        assert_eq!(time_left(1_799_999_999_999, now), Duration::ZERO);
        assert_eq!(time_left(600_000, now), Duration::from_secs(600));
        assert_eq!(time_left(0, now), Duration::ZERO);
    }
}
