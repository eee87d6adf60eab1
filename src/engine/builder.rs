//! How a processor is put together.

use std::any::type_name;
use std::fmt;
use std::sync::Arc;

use rand::RngExt;

use super::attempt::AttemptRunner;
use super::claims::Claims;
use super::classifiers::{Classifiers, Typed};
use super::decision::Decisions;
use super::give_up::DeadLetterWriter;
use super::protection::{Named, Protection, Run};
use super::released::ReleasedRecords;
use super::spans::Traces;
use super::{Engine, Resilient};
use crate::config::ConfigError;
use crate::dead_letter::outbox::Outbox;
use crate::dead_letter::{DeadLetterPolicy, DeadLetterSink};
use crate::failure::Verdict;
use crate::failure::classify::Classify;
use crate::idempotency::Idempotency;
use crate::observer::TraceContext;
use crate::observer::{Log, Observer, Observers, Watcher};
use crate::processor::RecordProcessor;
use crate::protection::CircuitBreaker;
use crate::protection::DeadLetterGuard;
use crate::protection::retry::{RetryBudget, RetryPolicy, seeded_rng};
use crate::retention::Retention;

/// Builds a [`Resilient`].
///
/// | setting | default |
/// |---|---|
/// | [`dead_letters`](ResilientBuilder::dead_letters) | none: must be given, or refused by name |
/// | [`retry`](ResilientBuilder::retry) | [`RetryPolicy::exponential`] |
/// | [`classify`](ResilientBuilder::classify), [`classifier`](ResilientBuilder::classifier) | [`StandardClassifier`](crate::StandardClassifier) alone |
/// | [`breaker`](ResilientBuilder::breaker) | [`CircuitBreaker::default`], its own |
/// | [`dependency_breaker`](ResilientBuilder::dependency_breaker) | none |
/// | [`guard`](ResilientBuilder::guard) | [`DeadLetterGuard::default`], its own |
/// | [`retry_budget`](ResilientBuilder::retry_budget) | [`RetryBudget::default`], its own |
/// | [`idempotency`](ResilientBuilder::idempotency) | none |
/// | [`observer`](ResilientBuilder::observer) | [`Log`] alone |
/// | [`log_error_text`](ResilientBuilder::log_error_text) | off |
/// | [`trace_context`](ResilientBuilder::trace_context) | none |
/// | [`name`](ResilientBuilder::name) | the handler's Rust type |
/// | [`version`](ResilientBuilder::version) | none |
/// | [`seed`](ResilientBuilder::seed) | random |
#[must_use]
pub struct ResilientBuilder<P: RecordProcessor> {
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
    seed: Option<u64>,
}

/// A setting that can be left unsaid, or refused by name.
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

/// Application names are part of keys in other stores, which bound them.
const MAX_APPLICATION_BYTES: usize = 128;

impl<P: RecordProcessor> ResilientBuilder<P> {
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
            seed: None,
        }
    }

    /// When to try again, and when to stop.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Classifies the handler's own errors, before they lose their type; `None` asks the next. May be
    /// called more than once: the first that knows decides, before any other classifier.
    ///
    /// ```
    /// # use redrive::{Record, Resilient, dead_letter, processor_fn, Verdict};
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

    /// Adds a classifier of any error, asked after the typed ones and before the standard one.
    pub fn classifier(mut self, classifier: impl Classify + 'static) -> Self {
        self.erased.push(Box::new(classifier));
        self
    }

    /// Where records go that failed for good.
    pub fn dead_letters(mut self, sink: impl DeadLetterSink + 'static) -> Self {
        self.sink = Setting::With(Arc::new(sink));
        self
    }

    /// A record that fails for good halts its shard instead of leaving it: for those who would rather
    /// stop than let anything pass.
    pub fn without_dead_letters(mut self) -> Self {
        self.sink = Setting::Without;
        self
    }

    /// What becomes of a shard once a record of it is a dead letter. Default: [`DeadLetterPolicy::Continue`].
    pub fn dead_letter_policy(mut self, after: DeadLetterPolicy) -> Self {
        self.after_dead_letter = after;
        self
    }

    /// The breaker: its settings, or one that others share.
    pub fn breaker(mut self, breaker: CircuitBreaker) -> Self {
        self.breaker = Setting::With(breaker);
        self
    }

    /// No breaker: a dependency that is down makes dead letters of all records that need it, as soon as
    /// their attempts are used up.
    pub fn without_breaker(mut self) -> Self {
        self.breaker = Setting::Without;
        self
    }

    /// A breaker for one dependency, to be shared by the processors that need it. It counts the failures
    /// that [name](Verdict::with_dependency) the dependency; all others count for the processor's own.
    pub fn dependency_breaker(mut self, dependency: impl Into<String>, breaker: CircuitBreaker) -> Self {
        self.dependencies.push(Named {
            dependency: Some(dependency.into()),
            breaker,
        });
        self
    }

    /// The dead-letter guard: its settings, or one that others share.
    pub fn guard(mut self, guard: DeadLetterGuard) -> Self {
        self.guard = Setting::With(guard);
        self
    }

    /// No dead-letter guard: when every record fails for good, every record becomes a dead letter.
    pub fn without_guard(mut self) -> Self {
        self.guard = Setting::Without;
        self
    }

    /// The retry budget: its settings, or one that others share.
    pub fn retry_budget(mut self, budget: RetryBudget) -> Self {
        self.budget = Setting::With(budget);
        self
    }

    /// No retry budget: nothing bounds the retries of all records together.
    pub fn without_retry_budget(mut self) -> Self {
        self.budget = Setting::Without;
        self
    }

    /// Remembers what was processed, so that it is not processed again: a store, or a store with
    /// [settings](Idempotency).
    pub fn idempotency(mut self, idempotency: impl Into<Idempotency>) -> Self {
        self.idempotency = Some(idempotency.into());
        self
    }

    /// Adds an observer. The log is always there.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.push(Watcher::new(observer));
        self
    }

    /// Whether the log shows the text of the handler's errors. Off by default, as such a text can
    /// quote the payload. (Rust's own panic hook prints a panic's message before anyone can catch it.)
    pub fn log_error_text(mut self, on: bool) -> Self {
        self.log_error_text = on;
        self
    }

    /// Which trace a record belongs to: its span goes on with it, and its letter says it.
    pub fn trace_context(mut self, context: impl TraceContext + 'static) -> Self {
        self.trace_context = Some(Box::new(context));
        self
    }

    /// The handler's name in dead letters.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The handler's version in dead letters.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Makes the jitter repeatable.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// The processor, or what is wrong with its settings.
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
        if let Some(idempotency) = &self.idempotency {
            idempotency.validate()?;
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
                    "say where records go that fail for good: .dead_letters(…), \
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
        let application: Arc<str> = self.application.into();
        let classifiers = Classifiers::new(self.typed, self.erased, observers.clone());
        Ok(Resilient(Arc::new(Engine {
            run: Run::begin(
                protection.clone(),
                (false, claims.is_some(), self.after_dead_letter),
                Retention::default(),
            ),
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

impl<P: RecordProcessor> fmt::Debug for ResilientBuilder<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResilientBuilder")
            .field("application", &self.application)
            .field("name", &self.name)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
