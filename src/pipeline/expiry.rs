//! Kinesis drops what is older than the retention: says so before it happens to a record that a shard waits for, and
//! lets go of the record in time, if it may.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use super::Pipeline;
use super::window::{Ordinal, Window};
use crate::engine::{HELD_AT_LEAST, Run};
use crate::observer::{Event, Interest, Observers};
use crate::retention::Retention;

/// Between looks at the oldest record, by which nothing is spent on records that are settled in time.
const LOOK: Duration = Duration::from_secs(60);
/// Somebody has to come, and has seen it or not.
const REPEAT_AFTER: Duration = Duration::from_secs(5 * 60);
/// From this share of the retention on it is told.
const TELL: f64 = 0.8;

/// What becomes of a held record that the stream is about to drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ExpiryPolicy {
    /// It is held on. If nobody comes in time it is lost, which is reported.
    #[default]
    Hold,
    /// Once it is older than nine tenths of the retention, and was held for 5 minutes, it becomes a dead letter
    /// ([`Reason::Expiring`](crate::dead_letter::Reason::Expiring)), though a breaker is open or the dead-letter guard
    /// has stopped the shard. The order is kept, and the shard moves on when the sink has confirmed it. What may run
    /// runs as ever, however old. Without a dead-letter sink it is held on.
    DeadLetter,
}

pub(super) struct Expiring {
    retention: Retention,
    on_expiring: ExpiryPolicy,
    timer: Option<Pin<Box<Sleep>>>,
    told: Option<Instant>,
    /// The record that the shard waits for, and since when it is seen to.
    oldest: Option<(Ordinal, Instant)>,
}

impl Expiring {
    /// Without a sink for dead letters there are none.
    pub(super) fn of(pipeline: &Pipeline, has_sink: bool) -> Self {
        Expiring {
            retention: pipeline.retention.clone(),
            on_expiring: match has_sink {
                true => pipeline.on_expiring,
                false => ExpiryPolicy::Hold,
            },
            timer: None,
            told: None,
            oldest: None,
        }
    }

    /// Whether a held record may become a dead letter before the stream drops it.
    pub(super) fn lets_expire(&self) -> bool {
        self.on_expiring == ExpiryPolicy::DeadLetter
    }

    /// To be called in every turn. `may_begin`: neither a breaker nor the guard is against it.
    pub(super) fn observe(
        &mut self,
        window: &Window,
        (run, may_begin): (&Run, bool),
        observers: &Observers,
        cx: &mut Context<'_>,
    ) {
        let Some(retention) = self.retention.get() else {
            return;
        };
        let Some((ordinal, oldest)) = window.oldest() else {
            (self.timer, self.told, self.oldest) = (None, None, None);
            run.give_up_expiring(false);
            return;
        };
        let give_up_age = self.lets_expire().then(|| self.retention.give_up_age()).flatten();
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(LOOK)));
        while timer.as_mut().poll(cx).is_ready() {
            timer.as_mut().reset(Instant::now() + LOOK);
            let age = oldest.age().unwrap_or_default();
            let (_, since) = *self.oldest.insert(match self.oldest {
                Some((known, since)) if known == ordinal => (known, since),
                _ => (ordinal, Instant::now()),
            });
            if give_up_age.is_none_or(|give_up| age < give_up) {
                run.give_up_expiring(false);
            } else if since.elapsed() >= HELD_AT_LEAST {
                run.give_up_expiring(true);
                // The next turn begins with it.
                cx.waker().wake_by_ref();
            } else if may_begin {
                run.give_up_expiring(false);
            }
            let told_lately = self.told.is_some_and(|told| told.elapsed() < REPEAT_AFTER);
            if age >= retention.mul_f64(TELL) && !told_lately && observers.want(Interest::SHARDS) {
                self.told = Some(Instant::now());
                observers.tell(&Event::RecordExpiring {
                    record: oldest,
                    age,
                    left: retention.saturating_sub(age),
                });
            }
        }
    }
}
