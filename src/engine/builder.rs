//! The builder of a resilient processor.

use std::any::type_name;
use std::fmt;
use std::sync::Arc;

use rand::RngExt;

use super::attempt::AttemptRunner;
use super::claims::Claims;
use super::classifiers::{Classifiers, Typed};
use super::decision::Decisions;
use super::give_up::DeadLetterWriter;
use super::protection::{Named, Protection, Run, RunSettings};
use super::released::ReleasedRecords;
use super::spans::Traces;
use super::workers::WorkerSetting;
use super::{Engine, Resilient};
use crate::config::ConfigError;
use crate::dead_letter::outbox::Outbox;
use crate::dead_letter::{DeadLetterPolicy, DeadLetterSink};
use crate::failure::Verdict;
use crate::failure::classify::Classify;
use crate::idempotency::Idempotency;
use crate::observer::TraceContext;
use crate::observer::{Log, Observer, Observers, Watcher};
use crate::processor::Handler;
use crate::protection::retry::{RetryBudget, RetryPolicy, seeded_rng};
use crate::protection::{CircuitBreaker, DeadLetterGuard};
use crate::retention::Retention;

/// Builds a [`Resilient`].
///
/// | setting | default |
/// |---|---|
/// | [`dead_letters`](ResilientBuilder::dead_letters) | required; [`without_dead_letters`](ResilientBuilder::without_dead_letters) disables dead letters |
/// | [`retry`](ResilientBuilder::retry) | [`RetryPolicy::exponential`] |
/// | [`classify`](ResilientBuilder::classify), [`classifier`](ResilientBuilder::classifier) | [`StandardClassifier`](crate::classify::StandardClassifier) alone |
/// | [`breaker`](ResilientBuilder::breaker) | [`CircuitBreaker::default`], not shared |
/// | [`dependency_breaker`](ResilientBuilder::dependency_breaker) | none |
/// | [`guard`](ResilientBuilder::guard) | [`DeadLetterGuard::default`], not shared |
/// | [`retry_budget`](ResilientBuilder::retry_budget) | [`RetryBudget::default`], not shared |
/// | [`idempotency`](ResilientBuilder::idempotency) | none |
/// | [`observer`](ResilientBuilder::observer) | [`Log`] alone |
/// | [`log_error_text`](ResilientBuilder::log_error_text) | off |
/// | [`trace_context`](ResilientBuilder::trace_context) | none |
/// | [`name`](ResilientBuilder::name) | the processor's Rust type |
/// | [`version`](ResilientBuilder::version) | none |
/// | [`workers`](ResilientBuilder::workers) | 1 |
/// | [`seed`](ResilientBuilder::seed) | random |
#[must_use]
pub struct ResilientBuilder<P: Handler> {
    processor: P,
    application: String,
    name: String,
    version: Option<String>,
    policy: RetryPolicy,
    typed: Vec<Typed<P::Error>>,
    erased: Vec<Box<dyn Classify>>,
    sink: Setting<Arc<dyn DeadLetterSink>>,
    after_dead_letter: DeadLetterPolicy,
    breaker: Setting<CircuitBreaker>,
    dependencies: Vec<Named>,
    guard: Setting<DeadLetterGuard>,
    budget: Setting<RetryBudget>,
    idempotency: Option<Idempotency>,
    observers: Vec<Watcher>,
    trace_context: Option<Box<dyn TraceContext>>,
    log_error_text: bool,
    workers: Option<WorkerSetting<P>>,
    seed: Option<u64>,
}

/// A setting that may be missing, or disabled explicitly.
enum Setting<T> {
    Unsaid,
    Without,
    With(T),
}

impl<T> Setting<T> {
    fn or(self, default: impl FnOnce() -> T) -> Option<T> {
        match self {
            Setting::Unsaid => Some(default()),
            Setting::Without => None,
            Setting::With(given) => Some(given),
        }
    }
}

/// The maximum length of an application's name. The name is part of keys in other stores, which limit their
/// length.
const MAX_APPLICATION_BYTES: usize = 128;

impl<P: Handler> ResilientBuilder<P> {
    pub(super) fn new(application: String, processor: P) -> Self {
        ResilientBuilder {
            processor,
            application,
            name: type_name::<P>().to_owned(),
            version: None,
            policy: RetryPolicy::default(),
            typed: Vec::new(),
            erased: Vec::new(),
            sink: Setting::Unsaid,
            after_dead_letter: DeadLetterPolicy::default(),
            breaker: Setting::Unsaid,
            dependencies: Vec::new(),
            guard: Setting::Unsaid,
            budget: Setting::Unsaid,
            idempotency: None,
            observers: Vec::new(),
            trace_context: None,
            log_error_text: false,
            workers: None,
            seed: None,
        }
    }

    /// Sets when a failed record is retried, and when retries stop.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Adds a classifier for the processor's own errors, which runs before the errors lose their type.
    ///
    /// Typed classifiers run before all others, in the order in which they were added. The first verdict
    /// decides; `None` passes the error on to the next classifier.
    ///
    /// ```
    /// # use redrive::{Record, Resilient, dead_letter, processor_fn, classify::Verdict};
    /// # #[derive(Debug, thiserror::Error)] #[error("")] enum Declined { Card, Bank }
    /// # async fn charge(_: Record) -> Result<(), Declined> { Ok(()) }
    /// # let builder =
    /// Resilient::builder("billing", processor_fn(charge)).classify(|error| match error {
    ///     Declined::Card => Some(Verdict::permanent().with_code("card_declined")),
    ///     Declined::Bank => None,
    /// })
    /// # ;
    /// ```
    pub fn classify(mut self, f: impl Fn(&P::Error) -> Option<Verdict> + Send + Sync + 'static) -> Self {
        self.typed.push(Box::new(f));
        self
    }

    /// Adds a classifier for any error. It runs after the typed classifiers and before the standard one.
    pub fn classifier(mut self, classifier: impl Classify + 'static) -> Self {
        self.erased.push(Box::new(classifier));
        self
    }

    /// Sets the sink for records that failed permanently or exhausted their attempts.
    pub fn dead_letters(mut self, sink: impl DeadLetterSink + 'static) -> Self {
        self.sink = Setting::With(Arc::new(sink));
        self
    }

    /// Disables dead letters: a record that would become a dead letter halts its shard instead. For services
    /// that would rather stop than pass a record over.
    pub fn without_dead_letters(mut self) -> Self {
        self.sink = Setting::Without;
        self
    }

    /// Sets what a dead letter does to its shard. Default: [`DeadLetterPolicy::Continue`].
    pub fn dead_letter_policy(mut self, after: DeadLetterPolicy) -> Self {
        self.after_dead_letter = after;
        self
    }

    /// Sets the circuit breaker: one with other settings, or one that several processors share.
    pub fn breaker(mut self, breaker: CircuitBreaker) -> Self {
        self.breaker = Setting::With(breaker);
        self
    }

    /// Disables the circuit breaker. While a dependency is down, every record that needs it becomes a dead
    /// letter as soon as its attempts are exhausted.
    pub fn without_breaker(mut self) -> Self {
        self.breaker = Setting::Without;
        self
    }

    /// Adds a breaker for one dependency, which all processors that need the dependency can share.
    ///
    /// The breaker counts the failures that [name](Verdict::with_dependency) the dependency. All other
    /// failures count for the processor's own breaker.
    pub fn dependency_breaker(mut self, dependency: impl Into<String>, breaker: CircuitBreaker) -> Self {
        self.dependencies.push(Named {
            dependency: Some(dependency.into()),
            breaker,
        });
        self
    }

    /// Sets the dead-letter guard: one with other settings, or one that several processors share.
    pub fn guard(mut self, guard: DeadLetterGuard) -> Self {
        self.guard = Setting::With(guard);
        self
    }

    /// Disables the dead-letter guard. When every record fails permanently, every record becomes a dead
    /// letter.
    pub fn without_guard(mut self) -> Self {
        self.guard = Setting::Without;
        self
    }

    /// Sets the retry budget: one with other settings, or one that several processors share.
    pub fn retry_budget(mut self, budget: RetryBudget) -> Self {
        self.budget = Setting::With(budget);
        self
    }

    /// Disables the retry budget: nothing limits the retries of all records together.
    pub fn without_retry_budget(mut self) -> Self {
        self.budget = Setting::Without;
        self
    }

    /// Enables idempotency: processed records are remembered, and not processed again. Takes a store, or a
    /// store with [settings](Idempotency).
    pub fn idempotency(mut self, idempotency: impl Into<Idempotency>) -> Self {
        self.idempotency = Some(idempotency.into());
        self
    }

    /// Adds an observer. The log is always active.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.push(Watcher::new(observer));
        self
    }

    /// Sets whether the log shows the text of the processor's errors. Default: off, because the text can
    /// quote the payload.
    ///
    /// Rust's own panic hook prints the message of a panic in any case, before redrive can catch the panic.
    pub fn log_error_text(mut self, on: bool) -> Self {
        self.log_error_text = on;
        self
    }

    /// Sets the source of trace contexts. The record's span continues its producer's trace, and a dead letter
    /// stores the trace context.
    pub fn trace_context(mut self, context: impl TraceContext + 'static) -> Self {
        self.trace_context = Some(Box::new(context));
        self
    }

    /// Sets the processor's name in dead letters. Default: the Rust type of the processor.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets the processor's version in dead letters. Default: none.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Sets the seed of the jitter, which makes delays repeatable. Default: random.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Builds the resilient processor.
    ///
    /// # Errors
    ///
    /// A setting is missing or cannot be used. The error names the setting.
    pub fn build(self) -> Result<Resilient<P>, ConfigError> {
        if self.application.trim().is_empty() {
            return Err(ConfigError::new(
                "builder",
                "the application needs a name: Resilient::builder(\"billing\", …)",
            ));
        }
        if self.application.len() > MAX_APPLICATION_BYTES {
            return Err(ConfigError::new(
                "builder",
                format!("the application's name is longer than {MAX_APPLICATION_BYTES} bytes"),
            ));
        }
        self.policy.validate()?;
        if let Some(workers) = &self.workers {
            workers.validate()?;
        }
        if let Some(idempotency) = &self.idempotency {
            idempotency.validate()?;
        }
        if let Some(bounds) = self.processor.batches() {
            bounds.validate()?;
        }
        let mut rng = seeded_rng(self.seed);
        let mut observers = self.observers;
        observers.push(Watcher::new(Log::new(self.log_error_text)));
        let observers = Observers::new(observers);
        let outbox = match self.sink {
            Setting::With(sink) => Some(Outbox::new(sink, observers.clone(), rng.random())),
            Setting::Without => None,
            Setting::Unsaid => {
                return Err(ConfigError::new(
                    "dead_letters",
                    "no dead-letter sink is set; call .dead_letters(…), \
                     or .without_dead_letters() to halt the shard instead",
                ));
            }
        };
        let claims = self
            .idempotency
            .map(|settings| Claims::new(settings, observers.clone(), rng.random()));
        let own = self
            .breaker
            .or(|| CircuitBreaker::builder().seed(rng.random()).make());
        let own = own.map(|breaker| Named {
            dependency: None,
            breaker,
        });
        let protection = Protection {
            breakers: own.into_iter().chain(self.dependencies).collect(),
            budget: self.budget.or(RetryBudget::default),
            guard: self.guard.or(DeadLetterGuard::default),
            observers: observers.clone(),
        };
        let protection = Arc::new(protection);
        let traces = Arc::new(Traces::new(self.trace_context, observers.clone()));
        observers.attach(&self.application)?;
        let application: Arc<str> = self.application.into();
        let classifiers = Classifiers::new(self.typed, self.erased, observers.clone());
        Ok(Resilient(Arc::new(Engine {
            run: Run::begin(
                protection.clone(),
                RunSettings {
                    lets_expire: false,
                    remembers: claims.is_some(),
                    after_dead_letter: self.after_dead_letter,
                },
                Retention::default(),
            ),
            workers: self.workers,
            attempts: AttemptRunner::new(self.processor, self.policy.timeout(), observers),
            decisions: Decisions::new(self.policy, classifiers, protection.clone(), rng),
            dead_letters: outbox.map(|outbox| DeadLetterWriter {
                application: application.clone(),
                error_type: type_name::<P::Error>(),
                name: self.name,
                version: self.version,
                outbox,
                protection: protection.clone(),
                traces: traces.clone(),
            }),
            after_dead_letter: self.after_dead_letter,
            claims,
            traces,
            interrupted: Arc::new(ReleasedRecords::new()),
            protection,
            application,
        })))
    }
}

impl<P: Handler + 'static> ResilientBuilder<P> {
    /// Sets the number of tasks per shard that call the processor: 1 to 1,024.
    ///
    /// With one, the shard's own task makes all calls. It makes them concurrently, so one task is enough for a
    /// processor that waits for I/O. A processor that computes, such as one that decompresses or decrypts, keeps
    /// that task busy, and a single shard then uses one core. With several workers its calls run on as many cores
    /// of tokio's multi-threaded runtime. Each call goes to the worker that has the fewest.
    ///
    /// - The order of records is kept as with one worker. With
    ///   [`RecordOrder::Shard`](crate::RecordOrder::Shard) one call runs at a time, so more workers change nothing.
    /// - A call on a worker costs more, as its record goes to another task and back.
    /// - If the shard's run is dropped, a call that computes at that time continues to its next `.await`.
    /// - [`settle`](Resilient::settle) calls the processor on the task of its caller.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(WorkerSetting::new(workers));
        self
    }
}

impl<P: Handler> fmt::Debug for ResilientBuilder<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResilientBuilder")
            .field("application", &self.application)
            .field("name", &self.name)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter;
    use crate::processor::processor_fn;

    async fn ok(_: crate::Record) -> Result<(), std::io::Error> {
        Ok(())
    }

    #[test]
    fn the_documented_defaults() {
        let builder = Resilient::builder("billing", processor_fn(ok));
        assert_eq!(builder.policy, RetryPolicy::exponential());
        assert!(builder.typed.is_empty() && builder.erased.is_empty());
        assert_eq!(builder.after_dead_letter, DeadLetterPolicy::Continue);
        assert!(builder.idempotency.is_none() && builder.trace_context.is_none());
        assert!(builder.observers.is_empty() && !builder.log_error_text);
        assert!(builder.name.contains("ok") && builder.version.is_none());
        assert!(builder.dependencies.is_empty() && builder.seed.is_none());
        let error = builder.build().expect_err("no dead-letter sink");
        assert_eq!(error.setting(), "dead_letters");

        let builder = Resilient::builder("billing", processor_fn(ok));
        let resilient = builder.dead_letters(dead_letter::Memory::new());
        let resilient = resilient.build().expect("valid");
        let debug = |value: &dyn fmt::Debug| format!("{value:?}");
        assert_eq!(
            debug(&resilient.breaker()),
            debug(&Some(CircuitBreaker::default()))
        );
        assert_eq!(
            debug(&resilient.guard()),
            debug(&Some(DeadLetterGuard::default()))
        );
        assert_eq!(
            debug(&resilient.retry_budget()),
            debug(&Some(RetryBudget::default()))
        );
    }
}
