//! Observers: the port to which redrive reports failures, settlements and the life of shards.

use std::any::type_name;
use std::fmt;
use std::ops::BitOr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::ConfigError;
use crate::external::caught;

mod event;
mod log;
mod trace_context;

pub use event::{
    Bound, DeadLetterEvent, Event, FleetEvent, ProtectionEvent, RecordEvent, Redacted, ShardEvent,
    StreamEvent, Success,
};
pub use log::Log;
pub use trace_context::TraceContext;

/// Receives events.
///
/// redrive calls an observer on the task that processes the records. An observer must be quick, must not
/// block and should not panic. redrive catches, counts and reports a panic
/// ([`ProtectionEvent::UserCodePanicked`]); only this observer misses the event. The `Debug` output of an
/// event contains no payload, no partition key and no text of a user's error.
pub trait Observer: Send + Sync {
    /// Returns the kinds of events that the observer wants. redrive calls this method once, when the
    /// observer is added, and creates no events of a kind that no observer wants.
    /// Default: all.
    fn interest(&self) -> Interest {
        Interest::ALL
    }

    /// Receives the name of the application, before the first event. redrive calls this method once for each
    /// [`Resilient`](crate::Resilient) that is built with the observer. An observer that wraps another one must
    /// forward the call. Default: does nothing.
    ///
    /// # Errors
    ///
    /// The observer cannot be used, for this application or at all.
    /// [`ResilientBuilder::build`](crate::ResilientBuilder::build) returns the error.
    fn attach(&self, application: &str) -> Result<(), ConfigError> {
        let _ = application;
        Ok(())
    }

    /// Receives an event of a wanted kind.
    fn on(&self, event: &Event<'_>);

    /// Receives the two events of a record that succeeds at its first attempt in one call. Most records cause no
    /// other events. redrive calls this method if the observer wants both kinds. If the method returns false,
    /// redrive calls [`on`](Observer::on) for each of the two events. Default: returns false.
    fn on_success(&self, success: &Success<'_>) -> bool {
        let _ = success;
        false
    }

    /// Sends what the observer has gathered. redrive calls this method before each answer of a Lambda
    /// function, because no task runs after it, and when a consumer or a MultiLang child ends. Default: does
    /// nothing.
    fn flush(&self) {}
}

const _: Option<&dyn Observer> = None;

impl<O: Observer + ?Sized> Observer for Arc<O> {
    fn interest(&self) -> Interest {
        (**self).interest()
    }

    fn attach(&self, application: &str) -> Result<(), ConfigError> {
        (**self).attach(application)
    }

    fn on(&self, event: &Event<'_>) {
        (**self).on(event);
    }

    fn on_success(&self, success: &Success<'_>) -> bool {
        (**self).on_success(success)
    }

    fn flush(&self) {
        (**self).flush();
    }
}

/// A set of event kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest(u8);

impl Interest {
    /// No events.
    pub const NONE: Interest = Interest(0);
    /// Failed attempts, retries, dead letters and releases: no events on the success path.
    pub const FAILURES: Interest = Interest(1);
    /// Every settlement. This kind costs one event for each record that succeeds.
    pub const SETTLEMENTS: Interest = Interest(2);
    /// Fetching, checkpoints and the life of shards.
    pub const SHARDS: Interest = Interest(4);
    /// Every call of the processor with its duration. This kind costs two clock reads for each call. In a test that
    /// pauses tokio's clock, the work of a call before its first wait still takes real time.
    pub const ATTEMPTS: Interest = Interest(8);
    /// The status of each shard of a consumer, every ten seconds.
    pub const STATUS: Interest = Interest(16);
    /// All events.
    pub const ALL: Interest = Interest((1 << Interest::KINDS) - 1);

    /// The kinds of the events in [`Success`].
    const SUCCESS: Interest = Interest(Interest::SETTLEMENTS.0 | Interest::ATTEMPTS.0);

    /// The number of kinds. Each kind has one bit.
    const KINDS: usize = 5;

    /// Returns true if this set and `other` have a kind in common.
    const fn intersects(self, other: Interest) -> bool {
        self.0 & other.0 != 0
    }

    /// Returns true if this set contains all kinds of `other`.
    pub const fn contains(self, other: Interest) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Interest {
    type Output = Interest;

    fn bitor(self, other: Interest) -> Interest {
        Interest(self.0 | other.0)
    }
}

/// A piece of user code, and the number of its panics.
#[derive(Debug)]
pub(crate) struct UserCode {
    name: String,
    panics: AtomicU64,
}

impl UserCode {
    /// Creates the counter of the code with this name in reports, such as `classifier`.
    pub(crate) fn new(name: impl Into<String>) -> Self {
        UserCode {
            name: name.into(),
            panics: AtomicU64::new(0),
        }
    }

    /// Counts a panic. Returns the number of panics so far, including this one.
    fn panicked(&self) -> u64 {
        self.panics.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }
}

/// An observer and the counter of its panics. A clone shares both.
#[derive(Clone)]
pub(crate) struct Watcher {
    observer: Arc<dyn Observer>,
    interest: Interest,
    code: Arc<UserCode>,
}

impl Watcher {
    pub(crate) fn new<O: Observer + 'static>(observer: O) -> Self {
        Watcher {
            interest: observer.interest(),
            observer: Arc::new(observer),
            code: Arc::new(UserCode::new(format!("observer {}", type_name::<O>()))),
        }
    }
}

/// The observers of one processor. A clone shares them.
#[derive(Clone)]
pub(crate) struct Observers {
    all: Arc<[Watcher]>,
    wanted: Arc<Wanted>,
    interest: Interest,
}

/// The observers that want each event.
#[derive(Default)]
struct Wanted {
    by_kind: [Vec<Watcher>; Interest::KINDS],
    /// The observers that want both events of a [`Success`].
    successes: Vec<Watcher>,
    /// The observers that want one of them.
    halves: Vec<Watcher>,
}

impl Observers {
    pub(crate) fn new(observers: Vec<Watcher>) -> Self {
        let mut wanted = Wanted::default();
        let mut all_interests = Interest::NONE;
        for observer in &observers {
            let interest = observer.interest;
            all_interests = all_interests | interest;
            for (place, list) in wanted.by_kind.iter_mut().enumerate() {
                if interest.contains(Interest(1 << place)) {
                    list.push(observer.clone());
                }
            }
            if interest.contains(Interest::SUCCESS) {
                wanted.successes.push(observer.clone());
            } else if interest.intersects(Interest::SUCCESS) {
                wanted.halves.push(observer.clone());
            }
        }
        Observers {
            all: observers.into(),
            wanted: Arc::new(wanted),
            interest: all_interests,
        }
    }

    /// Creates the log as the only observer, for use without a processor.
    pub(crate) fn log() -> Self {
        Observers::new(vec![Watcher::new(Log::default())])
    }

    /// Returns these observers and another one.
    #[cfg(feature = "kinesis")]
    pub(crate) fn and(&self, observer: Arc<dyn Observer>) -> Self {
        let observer = Watcher::new(observer);
        Observers::new(self.all.iter().cloned().chain([observer]).collect())
    }

    /// Hands the application's name to all observers.
    pub(crate) fn attach(&self, application: &str) -> Result<(), ConfigError> {
        let mut all = self.all.iter();
        all.try_for_each(|watcher| watcher.observer.attach(application))
    }

    pub(crate) fn want(&self, kind: Interest) -> bool {
        self.interest.contains(kind)
    }

    #[cfg(any(feature = "kinesis", feature = "lambda", feature = "multilang"))]
    pub(crate) fn flush(&self) {
        for watcher in self.all.iter() {
            if caught(|| watcher.observer.flush()).is_none() {
                self.tell_panicked(&watcher.code);
            }
        }
    }

    pub(crate) fn tell(&self, event: &Event<'_>) {
        self.tell_of(event.kind(), event);
    }

    /// Creates and reports an event of this kind, if any observer wants the kind.
    #[inline]
    pub(crate) fn report<'a>(&self, kind: Interest, event: impl FnOnce() -> Event<'a>) {
        if self.want(kind) {
            self.tell_of(kind, &event());
        }
    }

    /// Reports an event that is known to be of this kind.
    #[inline]
    pub(crate) fn tell_of(&self, kind: Interest, event: &Event<'_>) {
        debug_assert_eq!(kind, event.kind());
        let place = kind.0.trailing_zeros() as usize;
        let Some(wanted_by) = self.wanted.by_kind.get(place) else {
            return;
        };
        for watcher in wanted_by {
            if caught(|| watcher.observer.on(event)).is_none() {
                self.tell_panicked(&watcher.code);
            }
        }
    }

    /// Reports the success of a record at its first attempt. Inlined: the call would cost as much as the rest.
    #[inline(always)]
    pub(crate) fn tell_success(&self, success: &Success<'_>) {
        for watcher in &self.wanted.successes {
            match caught(|| watcher.observer.on_success(success)) {
                Some(true) => {}
                Some(false) => self.tell_each(watcher, success),
                None => self.tell_panicked(&watcher.code),
            }
        }
        for watcher in &self.wanted.halves {
            self.tell_each(watcher, success);
        }
    }

    /// Reports the events of a success, one by one, as far as this observer wants them.
    #[inline(never)]
    fn tell_each(&self, watcher: &Watcher, success: &Success<'_>) {
        for event in success.events() {
            if watcher.interest.contains(event.kind()) && caught(|| watcher.observer.on(&event)).is_none() {
                self.tell_panicked(&watcher.code);
            }
        }
    }

    /// Calls user code. Returns `None` if the code panicked, after reporting the panic.
    #[inline]
    pub(crate) fn caught<T>(&self, code: &UserCode, call: impl FnOnce() -> T) -> Option<T> {
        let result = caught(call);
        if result.is_none() {
            self.tell_panicked(code);
        }
        result
    }

    /// Counts a panic of user code and reports it, but not to the observer that panicked.
    #[cold]
    fn tell_panicked(&self, code: &UserCode) {
        let event = Event::Protection(ProtectionEvent::UserCodePanicked {
            code: &code.name,
            count: code.panicked(),
        });
        let place = event.kind().0.trailing_zeros() as usize;
        for watcher in self.wanted.by_kind.get(place).into_iter().flatten() {
            let is_it = std::ptr::eq(&*watcher.code, code);
            if !is_it && caught(|| watcher.observer.on(&event)).is_none() {
                watcher.code.panicked();
            }
        }
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observers")
            .field("count", &self.all.len())
            .field("interest", &self.interest)
            .finish()
    }
}
