//! The one port through which everything reports: failures, settlements, the life of a shard.

use std::fmt;
use std::ops::BitOr;
use std::sync::Arc;

mod event;
mod kind;
mod log;
mod place;

pub use event::{Bound, Event, Redacted};
pub use log::Log;

/// Hears what happens.
///
/// Called on the task that processes the records: it must be quick, must not block and should not
/// panic. `Debug` of an event shows no payload, no partition key and no text of a user's error.
pub trait Observer: Send + Sync {
    /// Which events it wants; asked once, when the processor is built. What nobody wants is not
    /// even measured. Default: all.
    fn interest(&self) -> Interest {
        Interest::ALL
    }

    /// Something happened.
    fn on(&self, event: &Event<'_>);

    /// What has been gathered is to leave the process now: before each answer of a Lambda function, after which nothing
    /// runs, and when a consumer ends. Default: nothing.
    fn flush(&self) {}
}

const _: Option<&dyn Observer> = None;

impl<O: Observer + ?Sized> Observer for Arc<O> {
    fn interest(&self) -> Interest {
        (**self).interest()
    }

    fn on(&self, event: &Event<'_>) {
        (**self).on(event);
    }

    fn flush(&self) {
        (**self).flush();
    }
}

/// A set of kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest(u8);

impl Interest {
    /// Nothing.
    pub const NONE: Interest = Interest(0);
    /// Failed attempts, retries, dead letters: nothing on the success path.
    pub const FAILURES: Interest = Interest(1);
    /// Every settlement: the only kind that costs something for a record that succeeds.
    pub const SETTLEMENTS: Interest = Interest(2);
    /// Fetching, checkpoints, the life of shards.
    pub const SHARDS: Interest = Interest(4);
    /// Every call of the handler, and how long it took: two looks at the clock for each.
    pub const ATTEMPTS: Interest = Interest(8);
    /// How each shard of a consumer stands, every ten seconds.
    pub const STANDING: Interest = Interest(16);
    /// Everything.
    pub const ALL: Interest = Interest((1 << Interest::KINDS) - 1);

    /// One bit each.
    const KINDS: usize = 5;

    /// Whether all of `other` is wanted.
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

/// The observers of one processor. A clone shares them.
#[derive(Clone)]
pub(crate) struct Observers {
    all: Arc<[Arc<dyn Observer>]>,
    /// Of these, who wants which kind.
    by_kind: Arc<[Vec<Arc<dyn Observer>>; Interest::KINDS]>,
    interest: Interest,
}

impl Observers {
    pub(crate) fn new(observers: Vec<Arc<dyn Observer>>) -> Self {
        let mut by_kind: [Vec<Arc<dyn Observer>>; Interest::KINDS] = Default::default();
        let mut all_interests = Interest::NONE;
        for observer in &observers {
            let interest = observer.interest();
            all_interests = all_interests | interest;
            for (place, list) in by_kind.iter_mut().enumerate() {
                if interest.contains(Interest(1 << place)) {
                    list.push(observer.clone());
                }
            }
        }
        Observers {
            all: observers.into(),
            by_kind: Arc::new(by_kind),
            interest: all_interests,
        }
    }

    /// These, and one more.
    #[cfg(feature = "kinesis")]
    pub(crate) fn and(&self, observer: Arc<dyn Observer>) -> Self {
        Observers::new(self.all.iter().cloned().chain([observer]).collect())
    }

    pub(crate) fn want(&self, kind: Interest) -> bool {
        self.interest.contains(kind)
    }

    #[cfg(any(feature = "kinesis", feature = "lambda", feature = "multilang"))]
    pub(crate) fn flush(&self) {
        self.all.iter().for_each(|observer| observer.flush());
    }

    pub(crate) fn tell(&self, event: &Event<'_>) {
        self.tell_of(event.kind(), event);
    }

    /// Tells an event that is known to be of this kind.
    #[inline]
    pub(crate) fn tell_of(&self, kind: Interest, event: &Event<'_>) {
        debug_assert_eq!(kind, event.kind());
        let place = kind.0.trailing_zeros() as usize;
        let Some(wanted_by) = self.by_kind.get(place) else {
            return;
        };
        for observer in wanted_by {
            observer.on(event);
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
