//! The state behind two gauges: open circuit breakers and stopped shards, tracked from events.

use std::collections::BTreeSet;

use super::metric::Metric;
use crate::observer::{Event, ProtectionEvent, RecordEvent, ShardEvent};
use crate::record::ShardId;

/// The breakers that are not closed, and the shards that the dead-letter guard has stopped.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// The dependencies of the breakers that are not closed. `None` is the breaker without a named
    /// dependency.
    open: BTreeSet<Option<String>>,
    stopped: BTreeSet<(String, ShardId)>,
    /// The streams whose last reported value was not 0. `None` stands for the breakers, which have no stream.
    told: BTreeSet<Option<String>>,
}

impl Standing {
    pub(super) fn hear(&mut self, event: &Event<'_>) {
        match event {
            Event::Protection(
                ProtectionEvent::BreakerOpened { dependency, .. }
                | ProtectionEvent::BreakerHalfOpened { dependency },
            ) => {
                self.open.insert(dependency.map(str::to_owned));
            }
            Event::Protection(ProtectionEvent::BreakerClosed { dependency, .. }) => {
                self.open.remove(&dependency.map(str::to_owned));
            }
            Event::Record {
                record,
                event: RecordEvent::DeadLetterGuardStopped { .. },
            } => {
                self.stopped
                    .insert((record.stream().to_owned(), record.shard().clone()));
            }
            Event::Record {
                record,
                event: RecordEvent::DeadLetterGuardResumed,
            } => self.goes_on(record.stream(), record.shard()),
            // Another worker owns the shard now, or the shard restarts.
            Event::Shard {
                stream,
                shard,
                event:
                    ShardEvent::Started { .. }
                    | ShardEvent::Ended
                    | ShardEvent::LeaseLost
                    | ShardEvent::HandedOver,
            } => self.goes_on(stream, shard),
            _ => {}
        }
    }

    fn goes_on(&mut self, stream: &str, shard: &ShardId) {
        if !self.stopped.is_empty() {
            self.stopped.remove(&(stream.to_owned(), shard.clone()));
        }
    }

    /// Returns the number of stopped shards of the stream.
    pub(super) fn stopped(&self, stream: &str) -> usize {
        self.stopped.iter().filter(|(of, _)| of == stream).count()
    }

    /// Returns the value to report for a stream, or for the breakers if `stream` is `None`. A value of 0 is
    /// reported only once, after another value.
    pub(super) fn tell(&mut self, stream: Option<&str>) -> Option<(Metric, f64)> {
        let (metric, count) = match stream {
            None => (Metric::BreakersOpen, self.open.len()),
            Some(stream) => (Metric::ShardsStopped, self.stopped(stream)),
        };
        let key = stream.map(str::to_owned);
        let is_told = match count {
            0 => self.told.remove(&key),
            _ => {
                self.told.insert(key);
                true
            }
        };
        is_told.then_some((metric, count as f64))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::record::{Position, Record};

    #[test]
    fn what_stands_still_is_told_until_it_goes_on_and_once_then() {
        let record = &Record::builder("orders", "shardId-0".into(), 1.into()).build();
        let mut standing = Standing::default();
        assert_eq!(standing.tell(None), None);
        let opened = |dependency| {
            Event::Protection(ProtectionEvent::BreakerOpened {
                dependency,
                failures: 1,
                attempts: 1,
                pause: Duration::ZERO,
            })
        };
        let closed = |dependency| {
            Event::Protection(ProtectionEvent::BreakerClosed {
                dependency,
                after: Duration::ZERO,
            })
        };
        standing.hear(&opened(None));
        standing.hear(&opened(Some("bank")));
        standing.hear(&Event::Protection(ProtectionEvent::BreakerHalfOpened {
            dependency: None,
        }));
        for _ in 0..2 {
            assert_eq!(standing.tell(None), Some((Metric::BreakersOpen, 2.0)));
        }
        standing.hear(&closed(None));
        assert_eq!(standing.tell(None), Some((Metric::BreakersOpen, 1.0)));
        standing.hear(&closed(Some("bank")));
        assert_eq!(standing.tell(None), Some((Metric::BreakersOpen, 0.0)));
        assert_eq!(standing.tell(None), None);

        let stopped = Event::Record {
            record,
            event: RecordEvent::DeadLetterGuardStopped {
                letters: 1,
                settled: 1,
            },
        };
        let (stream, shard) = (record.stream(), record.shard());
        for goes_on in [
            Event::Record {
                record,
                event: RecordEvent::DeadLetterGuardResumed,
            },
            Event::Shard {
                stream,
                shard,
                event: ShardEvent::LeaseLost,
            },
            Event::Shard {
                stream,
                shard,
                event: ShardEvent::Started {
                    position: &Position::TrimHorizon,
                },
            },
        ] {
            standing.hear(&stopped);
            assert_eq!(standing.tell(Some("payments")), None);
            assert_eq!(standing.tell(Some("orders")), Some((Metric::ShardsStopped, 1.0)));
            standing.hear(&goes_on);
            assert_eq!(
                standing.tell(Some("orders")),
                Some((Metric::ShardsStopped, 0.0)),
                "{goes_on:?}"
            );
            assert_eq!(standing.tell(Some("orders")), None);
        }
    }
}
