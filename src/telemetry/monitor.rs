//! Watches error rates, and sends alerts.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::alert::{Alert, AlertSink, AlertState};
use super::application::Application;
use super::threshold::{Rate, Threshold};
use crate::config::ConfigError;
use crate::external::answer;
use crate::failure::{texts, written};
use crate::observer::{Event, Interest, Observer, RecordEvent};
use crate::protection::sliding_window::SlidingWindow;
use crate::settlement::Settled;

/// Watches rates in sliding windows, and sends alerts to [`AlertSink`]s: when a rate becomes too high,
/// repeatedly while it stays too high, and once when it has recovered.
///
/// ```
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use redrive::telemetry::{Monitor, Rate, Threshold, alert};
/// use redrive::{Record, Resilient, dead_letter, processor_fn};
///
/// # async fn store_order(_: Record) -> Result<(), std::io::Error> { Ok(()) }
/// let monitor = Monitor::builder()
///     .watch(Threshold::on(Rate::FailedAttempts(None)).above(0.2))
///     .watch(Threshold::on(Rate::DeadLetters).above(0.01))
///     .watch(Threshold::on(Rate::SlowerThan(Duration::from_secs(60))).above(0.5))
///     .alert_sink(alert::Log)
///     .build()?;
/// let orders = Resilient::builder("billing", processor_fn(store_order))
///     .dead_letters(dead_letter::Memory::new())
///     .observer(monitor)
///     .build()?;
/// # Ok(())
/// # }
/// ```
///
/// A monitor counts the events of its own process only. It calls the sinks on a separate task, which runs
/// while an alert is raised, so that a slow sink delays no record. A clone shares the monitor. In AWS Lambda,
/// where no task runs between invocations and a function has many processes, use [`Emf`](super) and
/// the CloudWatch alarms of `deploy/alarms.yaml`.
#[derive(Clone)]
pub struct Monitor(Arc<Inner>);

struct Inner {
    application: Application,
    sinks: Vec<Arc<dyn AlertSink>>,
    repeat_after: Duration,
    watches: Mutex<Vec<Watch>>,
    /// The channel to the task, while the task runs.
    post: Mutex<Option<mpsc::Sender<Alert>>>,
}

/// A threshold, and the counts within its window.
struct Watch {
    threshold: Threshold,
    bad: SlidingWindow,
    all: SlidingWindow,
    raised: Option<Raised>,
}

struct Raised {
    since: SystemTime,
    told: Instant,
}

/// The maximum number of pending alerts. Further alerts are only logged: the sinks hang.
const ROOM: usize = 64;
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
const TRIES: u32 = 3;
const BETWEEN_TRIES: Duration = Duration::from_secs(1);

/// Builds a [`Monitor`].
///
/// | setting | default |
/// |---|---|
/// | [`watch`](MonitorBuilder::watch) | failed attempts above 20 %, dead letters above 1 % |
/// | [`alert_sink`](MonitorBuilder::alert_sink) | none; at least one is required |
/// | [`repeat_after`](MonitorBuilder::repeat_after) | 15 minutes |
#[must_use]
pub struct MonitorBuilder {
    thresholds: Vec<Threshold>,
    sinks: Vec<Arc<dyn AlertSink>>,
    repeat_after: Duration,
}

impl Monitor {
    /// Creates a builder with the defaults.
    pub fn builder() -> MonitorBuilder {
        MonitorBuilder {
            thresholds: Vec::new(),
            sinks: Vec::new(),
            repeat_after: Duration::from_secs(15 * 60),
        }
    }
}

impl MonitorBuilder {
    /// Adds a threshold to watch. The first one replaces the default thresholds.
    pub fn watch(mut self, threshold: Threshold) -> Self {
        self.thresholds.push(threshold);
        self
    }

    /// Adds a sink that receives every alert.
    pub fn alert_sink(mut self, sink: impl AlertSink + 'static) -> Self {
        self.sinks.push(Arc::new(sink));
        self
    }

    /// Sets the time after which an alert is repeated while the rate is still too high: at least 1 s. Default:
    /// 15 minutes.
    pub fn repeat_after(mut self, time: Duration) -> Self {
        self.repeat_after = time;
        self
    }

    /// Builds the monitor.
    ///
    /// # Errors
    ///
    /// A setting is missing or cannot be used. The error names the setting.
    pub fn build(mut self) -> Result<Monitor, ConfigError> {
        if self.sinks.is_empty() {
            return Err(ConfigError::new(
                "alert_sink",
                "at least one alert sink is required, e.g. .alert_sink(alert::Log)",
            ));
        }
        if self.repeat_after < Duration::from_secs(1) {
            let problem = format!("must be at least 1 s, not {:?}", self.repeat_after);
            return Err(ConfigError::new("repeat_after", problem));
        }
        if self.thresholds.is_empty() {
            self.thresholds = vec![
                Threshold::on(Rate::FailedAttempts(None)).above(0.2),
                Threshold::on(Rate::DeadLetters).above(0.01),
            ];
        }
        self.thresholds.iter().try_for_each(Threshold::validate)?;
        let watches = self.thresholds.into_iter().map(|threshold| Watch {
            bad: SlidingWindow::new(threshold.within),
            all: SlidingWindow::new(threshold.within),
            threshold,
            raised: None,
        });
        Ok(Monitor(Arc::new(Inner {
            application: Application::default(),
            sinks: self.sinks,
            repeat_after: self.repeat_after,
            watches: Mutex::new(watches.collect()),
            post: Mutex::new(None),
        })))
    }
}

impl Observer for Monitor {
    fn interest(&self) -> Interest {
        Interest::FAILURES | Interest::SETTLEMENTS
    }

    fn attach(&self, application: &str) -> Result<(), ConfigError> {
        self.0.application.attach(application)
    }

    fn on(&self, event: &Event<'_>) {
        let now = Instant::now();
        let mut any_bad = false;
        let mut watches = self.0.watches();
        for watch in watches.iter_mut() {
            let Some(bad) = watch.threshold.rate.counts(event) else {
                continue;
            };
            let count = match event {
                Event::Record {
                    event: RecordEvent::AttemptFailed { records, .. },
                    ..
                } => *records as u64,
                _ => 1,
            };
            watch.all.add(now, count);
            if bad {
                watch.bad.add(now, count);
                any_bad = true;
            }
        }
        // Good events cannot raise a rate. The task detects that a rate has fallen.
        if any_bad {
            let alerts = self.0.judge(&mut watches, now);
            drop(watches);
            alerts.into_iter().for_each(|alert| self.post(alert));
        }
    }
}

impl Rate {
    /// Returns whether the event is a bad one. `None`: the event does not count for this rate.
    fn counts(self, event: &Event<'_>) -> Option<bool> {
        let Event::Record { record, event } = event else {
            return None;
        };
        match (self, event) {
            (Rate::FailedAttempts(_), RecordEvent::Settled { settled, .. }) => {
                matches!(settled, Settled::Processed).then_some(false)
            }
            (Rate::FailedAttempts(class), RecordEvent::AttemptFailed { failure, .. }) => {
                let is = failure.reveal().verdict().class();
                Some(class.is_none_or(|class| class == is))
            }
            (Rate::DeadLetters, RecordEvent::Settled { settled, .. }) => {
                Some(matches!(settled, Settled::DeadLettered(_)))
            }
            (Rate::SlowerThan(limit), RecordEvent::Settled { .. }) => Some(record.age()? > limit),
            _ => None,
        }
    }
}

impl Inner {
    fn watches(&self) -> MutexGuard<'_, Vec<Watch>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the alerts that are due.
    fn judge(&self, watches: &mut [Watch], now: Instant) -> Vec<Alert> {
        let each = watches.iter_mut();
        each.filter_map(|watch| watch.judge(self.application.name(), self.repeat_after, now))
            .collect()
    }
}

impl Watch {
    fn judge(&mut self, application: &str, repeat_after: Duration, now: Instant) -> Option<Alert> {
        let (bad, of) = (self.bad.sum(now), self.all.sum(now));
        let share = if of == 0 { 0.0 } else { bad as f64 / of as f64 };
        let says_something = of >= self.threshold.at_least;
        let too_high = says_something && share >= self.threshold.above;
        let state = match &mut self.raised {
            None if too_high => AlertState::Raised,
            None => return None,
            // This applies below `at_least` too: when hardly anything happens, hardly anything fails.
            Some(_) if share < self.threshold.clears_below() => AlertState::Recovered,
            Some(raised) if now.saturating_duration_since(raised.told) >= repeat_after => {
                raised.told = now;
                AlertState::Repeated
            }
            Some(_) => return None,
        };
        let raised = match state {
            AlertState::Recovered => self.raised.take(),
            _ => None,
        };
        let since = match raised.as_ref().or(self.raised.as_ref()) {
            Some(raised) => raised.since,
            None => SystemTime::now(),
        };
        if state == AlertState::Raised {
            self.raised = Some(Raised { since, told: now });
        }
        Some(Alert {
            application: application.to_owned(),
            rate: self.threshold.rate,
            state,
            share,
            above: self.threshold.above,
            of,
            within: self.threshold.within,
            since,
        })
    }
}

impl Monitor {
    /// Hands an alert to the task, and starts the task if it does not run.
    fn post(&self, alert: Alert) {
        let mut post = self.0.post.lock().unwrap_or_else(PoisonError::into_inner);
        let unsent = match &*post {
            Some(sender) => match sender.try_send(alert) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(alert)) => {
                    tracing::warn!("{alert}; not sent, because the alert sinks hang");
                    return;
                }
                Err(mpsc::error::TrySendError::Closed(alert)) => alert,
            },
            None => alert,
        };
        let Ok(runtime) = Handle::try_current() else {
            tracing::warn!("{unsent}; not sent, because there is no tokio runtime");
            return;
        };
        let (sender, receiver) = mpsc::channel(ROOM);
        // The channel is new and has room.
        let _ = sender.try_send(unsent);
        *post = Some(sender);
        runtime.spawn(tell(Arc::downgrade(&self.0), receiver));
    }
}

/// Sends alerts to the sinks, and checks every second whether raised alerts are over.
async fn tell(monitor: Weak<Inner>, mut alerts: mpsc::Receiver<Alert>) {
    loop {
        let next = timeout(Duration::from_secs(1), alerts.recv()).await;
        let Some(inner) = monitor.upgrade() else { return };
        let mut due = Vec::new();
        match next {
            Ok(Some(alert)) => due.push(alert),
            Ok(None) => return,
            Err(_) => {
                let mut watches = inner.watches();
                due = inner.judge(&mut watches, Instant::now());
                let is_quiet = due.is_empty() && watches.iter().all(|watch| watch.raised.is_none());
                if is_quiet {
                    drop(watches);
                    let mut post = inner.post.lock().unwrap_or_else(PoisonError::into_inner);
                    // An alert may have arrived meanwhile. It is sent first.
                    if alerts.is_empty() {
                        *post = None;
                        return;
                    }
                }
            }
        }
        for alert in due {
            for sink in &inner.sinks {
                send(&**sink, &alert).await;
            }
        }
    }
}

async fn send(sink: &dyn AlertSink, alert: &Alert) {
    for left in (0..TRIES).rev() {
        let sent = answer("the alert sink", SEND_TIMEOUT, async { sink.send(alert).await }).await;
        let Err(error) = sent.and_then(|sent| sent) else {
            return;
        };
        if left == 0 {
            tracing::warn!(
                sink = written(format_args!("{sink:?}")),
                error = texts(&*error),
                "{alert}; not sent to this sink"
            );
            return;
        }
        sleep(BETWEEN_TRIES).await;
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor")
            .field("application", &self.0.application.name())
            .field("sinks", &self.0.sinks)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for MonitorBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MonitorBuilder")
            .field("thresholds", &self.thresholds)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_defaults() {
        let builder = Monitor::builder().alert_sink(super::super::alert::Log);
        assert_eq!(builder.repeat_after, Duration::from_secs(15 * 60));
        let monitor = builder.build().expect("valid");
        let watches = monitor.0.watches();
        let thresholds: Vec<&Threshold> = watches.iter().map(|watch| &watch.threshold).collect();
        let [attempts, letters] = thresholds[..] else {
            panic!("{thresholds:?}")
        };
        assert_eq!(
            (attempts.rate, attempts.above, attempts.clears_below()),
            (Rate::FailedAttempts(None), 0.2, 0.1)
        );
        assert_eq!((letters.rate, letters.above), (Rate::DeadLetters, 0.01));
        for threshold in thresholds {
            assert_eq!(
                (threshold.at_least, threshold.within),
                (50, Duration::from_secs(60))
            );
        }
        assert_eq!(Threshold::on(Rate::DeadLetters).above, 0.05);
    }
}
