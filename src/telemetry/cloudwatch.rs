//! Metrics in CloudWatch, by its API.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use aws_sdk_cloudwatch::Client;
use aws_sdk_cloudwatch::primitives::DateTime;
use aws_sdk_cloudwatch::types::{Dimension, MetricDatum, StandardUnit};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::gauges::Standing;
use super::metric::{Kind, Metric, Unit, measure};
use crate::aws::{self, Located};
use crate::observer::{Event, Observer};

/// Sends metrics to CloudWatch with PutMetricData, added up in this process: one call a minute for 1,000 metrics, however
/// many records there are. Latencies are sent as values with their counts, rounded to 5 % and a thousandth, so that percentiles can be asked
/// for.
///
/// Dimensions are `Application` and `Stream`. Names are those of [`Metric`]. What could not be sent is sent again a minute
/// later, up to 10,000 of them; [`dropped`](CloudWatch::dropped) counts what was given up.
///
/// The first event begins a task on the tokio runtime that it comes from; it ends with the last clone. Call
/// [`close`](CloudWatch::close) at the end of the process, or up to a minute is missing. In AWS Lambda, where nothing runs
/// between invocations, use `Emf`.
///
/// Permissions: `cloudwatch:PutMetricData`.
///
/// | setting | default |
/// |---|---|
/// | [`namespace`](CloudWatch::namespace) | `redrive` |
/// | [`interval`](CloudWatch::interval) | a minute |
#[derive(Clone)]
pub struct CloudWatch {
    settings: Settings,
    shared: Arc<Shared>,
}

#[derive(Clone)]
struct Settings {
    client: Located<Client>,
    application: Arc<str>,
    namespace: Arc<str>,
    interval: Duration,
}

#[derive(Default)]
struct Shared {
    gathered: Mutex<All>,
    running: AtomicBool,
    now: Arc<Notify>,
    dropped: AtomicU64,
    /// Sending takes turns.
    unsent: tokio::sync::Mutex<Vec<MetricDatum>>,
}

#[derive(Default)]
struct All {
    each: Vec<Gathered>,
    standing: Standing,
}

/// Of a stream, or of none, since the last call.
struct Gathered {
    stream: Option<String>,
    sums: [f64; Metric::ALL.len()],
    /// How many values are within each [step](step).
    values: [BTreeMap<i32, u64>; Metric::ALL.len()],
}

/// PutMetricData takes as many metrics, and values of each (PutMetricData, CloudWatch API reference).
const METRICS: usize = 1_000;
const VALUES: usize = 150;
/// What is kept of what could not be sent.
const UNSENT: usize = 10_000;
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// From one value that is told apart to the next.
const STEP: f64 = 1.05;

impl CloudWatch {
    /// The metrics of this application, as [`Resilient::builder`](crate::Resilient::builder) has it.
    pub fn new(client: Client, application: impl Into<Arc<str>>) -> Self {
        CloudWatch {
            settings: Settings {
                client: aws::cloudwatch::with_timeout(&client, aws::ATTEMPT_TIMEOUT),
                application: application.into(),
                namespace: "redrive".into(),
                interval: Duration::from_secs(60),
            },
            shared: Arc::default(),
        }
    }

    /// Under which CloudWatch lists them. Default: `redrive`.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<Arc<str>>) -> Self {
        self.settings.namespace = namespace.into();
        self
    }

    /// How often they are sent; a second at least. Default: once a minute, which is as fine as CloudWatch keeps them.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.settings.interval = interval.max(Duration::from_secs(1));
        self
    }

    /// How many metrics were given up, as they could not be sent.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Sends what there is, within 10 s, and returns once it is sent.
    pub async fn close(&self) {
        let sent = timeout(CLOSE_TIMEOUT, self.shared.send(&self.settings)).await;
        if sent.is_err() {
            tracing::warn!("the last metrics could not be sent to CloudWatch within 10 s");
        }
    }

    fn ensure_running(&self) {
        if self.shared.running.load(Ordering::Relaxed) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        if !self.shared.running.swap(true, Ordering::Relaxed) {
            let shared = Arc::downgrade(&self.shared);
            runtime.spawn(run(self.settings.clone(), shared, self.shared.now.clone()));
        }
    }
}

async fn run(settings: Settings, shared: Weak<Shared>, now: Arc<Notify>) {
    // A runtime that goes away takes the task with it: the next event begins another.
    let _running = Running(shared.clone());
    loop {
        tokio::select! {
            () = sleep(settings.interval) => {}
            () = now.notified() => {}
        }
        // Not held while it waits: it ends with the last clone.
        let Some(shared) = shared.upgrade() else { return };
        shared.send(&settings).await;
    }
}

struct Running(Weak<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.running.store(false, Ordering::Relaxed);
        }
    }
}

impl Shared {
    fn gathered(&self) -> MutexGuard<'_, All> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, settings: &Settings) {
        let mut unsent = self.unsent.lock().await;
        unsent.extend(self.take(settings));
        let over = unsent.len().saturating_sub(UNSENT);
        if over > 0 {
            unsent.drain(..over);
            self.dropped.fetch_add(over as u64, Ordering::Relaxed);
        }
        while !unsent.is_empty() {
            let metrics = unsent[..unsent.len().min(METRICS)].to_vec();
            let call = settings.client.put_metric_data().namespace(&*settings.namespace);
            match call.set_metric_data(Some(metrics.clone())).send().await {
                Ok(_) => drop(unsent.drain(..metrics.len())),
                Err(error) => {
                    let kept = unsent.len();
                    tracing::warn!(
                        kept,
                        error = &error as &dyn std::error::Error,
                        "metrics could not be sent to CloudWatch; they are sent with the next ones"
                    );
                    return;
                }
            }
        }
    }

    fn take(&self, settings: &Settings) -> Vec<MetricDatum> {
        let now = DateTime::from(SystemTime::now());
        let mut data = Vec::new();
        let All { each, standing } = &mut *self.gathered();
        for gathered in each {
            if let Some((metric, count)) = standing.tell(gathered.stream.as_deref()) {
                gathered.add(metric, count);
            }
            gathered.take(settings, now, &mut data);
        }
        data
    }
}

impl Gathered {
    fn new(stream: Option<&str>) -> Self {
        Gathered {
            stream: stream.map(str::to_owned),
            sums: [0.0; Metric::ALL.len()],
            values: std::array::from_fn(|_| BTreeMap::new()),
        }
    }

    fn add(&mut self, metric: Metric, value: f64) {
        match metric.kind() {
            Kind::Sum => self.sums[metric as usize] += value,
            Kind::Distribution => *self.values[metric as usize].entry(step(value)).or_default() += 1,
        }
    }

    fn take(&mut self, settings: &Settings, now: DateTime, data: &mut Vec<MetricDatum>) {
        let dimension = |name: &str, value: &str| Dimension::builder().name(name).value(value).build();
        let mut dimensions = vec![dimension("Application", &settings.application)];
        dimensions.extend(self.stream.iter().map(|stream| dimension("Stream", stream)));
        for metric in Metric::ALL {
            let datum = || {
                MetricDatum::builder()
                    .metric_name(metric.name())
                    .set_dimensions(Some(dimensions.clone()))
                    .timestamp(now)
                    .unit(match metric.unit() {
                        Unit::Count => StandardUnit::Count,
                        Unit::Bytes => StandardUnit::Bytes,
                        Unit::Milliseconds => StandardUnit::Milliseconds,
                    })
            };
            match metric.kind() {
                Kind::Sum => {
                    let sum = std::mem::take(&mut self.sums[metric as usize]);
                    if sum > 0.0 || (self.stream.is_some() && metric.is_always_told()) {
                        data.push(datum().value(sum).build());
                    }
                }
                Kind::Distribution => {
                    let values = std::mem::take(&mut self.values[metric as usize]);
                    let values: Vec<_> = values.into_iter().collect();
                    for values in values.chunks(VALUES) {
                        let (values, counts): (Vec<f64>, Vec<f64>) = values
                            .iter()
                            .map(|(step, count)| (value(*step), *count as f64))
                            .unzip();
                        let datum = datum().set_values(Some(values)).set_counts(Some(counts));
                        data.push(datum.build());
                    }
                }
            }
        }
    }
}

/// Values of which the logarithms are next to each other are taken for one. Below a thousandth all are.
fn step(value: f64) -> i32 {
    match value > 0.001 {
        // Saturates, which no time or count comes to.
        true => (value.ln() / STEP.ln()).round() as i32,
        false => i32::MIN,
    }
}

fn value(step: i32) -> f64 {
    match step {
        i32::MIN => 0.0,
        step => (STEP.powi(step) * 1_000.0).round() / 1_000.0,
    }
}

impl Observer for CloudWatch {
    fn on(&self, event: &Event<'_>) {
        self.ensure_running();
        let All { each, standing } = &mut *self.shared.gathered();
        standing.hear(event);
        let mut at = None;
        measure(event, |metric, value| {
            let at = *at.get_or_insert_with(|| {
                let stream = event.stream();
                let known = each.iter().position(|known| known.stream.as_deref() == stream);
                known.unwrap_or_else(|| {
                    each.push(Gathered::new(stream));
                    each.len() - 1
                })
            });
            each[at].add(metric, value);
        });
    }

    fn flush(&self) {
        self.shared.now.notify_one();
    }
}

impl fmt::Debug for CloudWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudWatch")
            .field("application", &self.settings.application)
            .field("namespace", &self.settings.namespace)
            .field("interval", &self.settings.interval)
            .field("dropped", &self.dropped())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_off_by_no_more_than_was_said() {
        // Below it is the thousandth that counts.
        for exponent in 0..9 {
            for digits in 1..100 {
                let exact = f64::from(digits) / 10.0 * 10_f64.powi(exponent);
                let sent = value(step(exact));
                assert!((sent / exact - 1.0).abs() < 0.05, "{exact}: {sent}");
            }
        }
        assert_eq!(value(step(0.0)), 0.0);
        // Whole small numbers, as of records, are told apart.
        let steps: std::collections::BTreeSet<i32> = (1..20).map(f64::from).map(step).collect();
        assert_eq!(steps.len(), 19);
    }
}
