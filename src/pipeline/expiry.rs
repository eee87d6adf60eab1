//! Records that Kinesis is about to drop, because they are older than the retention. The pipeline reports a
//! record that its shard waits for before that happens. If the policy allows, it gives the record up in time.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use super::Pipeline;
use super::window::{Ordinal, Window};
use crate::engine::{HELD_AT_LEAST, Run};
use crate::observer::{Event, Interest, RecordEvent};
use crate::retention::Retention;

/// The interval between checks of the oldest record. Records that settle in time cost nothing.
const LOOK: Duration = Duration::from_secs(60);
/// The interval between reports. An operator has to act, and may have missed the earlier report.
const REPEAT_AFTER: Duration = Duration::from_secs(5 * 60);
/// The share of the retention from which on a record is reported.
const TELL: f64 = 0.8;

/// The treatment of a held record that the stream is about to drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ExpiryPolicy {
    /// The record stays held. If the cause is not fixed in time, the record is lost, and the loss is
    /// reported.
    #[default]
    Hold,
    /// The record becomes a dead letter ([`Reason::Expiring`](crate::dead_letter::Reason::Expiring)) once it
    /// is older than nine tenths of the retention and was held for 5 minutes. This happens even while a
    /// breaker is open or the dead-letter guard has stopped the shard. Records keep their order, and the
    /// shard continues when the sink has confirmed the dead letter. A record that may run is processed
    /// normally, however old it is. Without a dead-letter sink the record stays held.
    DeadLetter,
}

pub(super) struct Expiring {
    retention: Retention,
    on_expiring: ExpiryPolicy,
    timer: Option<Pin<Box<Sleep>>>,
    told: Option<Instant>,
    /// The record that the shard waits for, and the time of the check that first found it.
    oldest: Option<(Ordinal, Instant)>,
}

impl Expiring {
    /// Creates the watch over the oldest record. Without a dead-letter sink the policy is always `Hold`.
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

    /// Returns whether a held record may become a dead letter before the stream drops it.
    pub(super) fn lets_expire(&self) -> bool {
        self.on_expiring == ExpiryPolicy::DeadLetter
    }

    /// Checks the oldest record. The task calls this in every turn. `may_begin`: every breaker is closed, and
    /// the guard has not stopped the shard.
    pub(super) fn observe(&mut self, window: &Window, run: &Run, may_begin: bool, cx: &mut Context<'_>) {
        let observers = run.observers();
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
                // The next turn gives the record up.
                cx.waker().wake_by_ref();
            } else if may_begin {
                run.give_up_expiring(false);
            }
            let told_lately = self.told.is_some_and(|told| told.elapsed() < REPEAT_AFTER);
            if age >= retention.mul_f64(TELL) && !told_lately && observers.want(Interest::SHARDS) {
                self.told = Some(Instant::now());
                observers.tell(&Event::Record {
                    record: oldest,
                    event: RecordEvent::Expiring {
                        age,
                        left: retention.saturating_sub(age),
                    },
                });
            }
        }
    }
}
