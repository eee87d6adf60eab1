//! Metrics in CloudWatch, through its API.

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

use super::application::Application;
use super::gauges::Standing;
use super::metric::{Kind, Metric, Unit, measure};
use crate::aws::{self, Located};
use crate::config::ConfigError;
use crate::observer::{Event, Observer, Success};

/// Sends metrics to CloudWatch with PutMetricData. The process aggregates the values and makes one call a
/// minute for up to 1,000 metrics, regardless of the number of records. Distributions are sent as values with
/// counts, so that CloudWatch can compute percentiles. Each value is rounded to 5 % and to three decimals.
///
/// The dimensions are `Application` and `Stream`. The names are those of [`Metric`]. Metrics that could not
/// be sent are kept, up to 10,000, and sent again after the [`interval`](CloudWatch::interval). Older ones
/// are dropped and counted by [`dropped`](CloudWatch::dropped).
///
/// The first event starts a task on the current tokio runtime. The task ends with the last clone of the
/// observer. Call [`close`](CloudWatch::close) at the end of the process; otherwise the metrics of the last
/// minute may be missing. In AWS Lambda, where no task runs between invocations, use `Emf`.
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
    namespace: Arc<str>,
    interval: Duration,
}

#[derive(Default)]
struct Shared {
    application: Application,
    gathered: Mutex<All>,
    running: AtomicBool,
    now: Arc<Notify>,
    dropped: AtomicU64,
    /// Locked while sending, so that only one task sends at a time.
    unsent: tokio::sync::Mutex<Vec<MetricDatum>>,
}

#[derive(Default)]
struct All {
    each: Vec<Gathered>,
    standing: Standing,
}

/// The metrics of a stream, or of no stream, since the last call.
struct Gathered {
    stream: Option<String>,
    sums: [f64; Metric::COUNT],
    /// The number of values within each [step](step).
    values: [BTreeMap<i32, u64>; Metric::COUNT],
}

/// The maximum number of metrics in a call, and of values of each metric (PutMetricData, CloudWatch API
/// reference).
const METRICS: usize = 1_000;
const VALUES: usize = 150;
/// The maximum number of unsent metrics that are kept.
const UNSENT: usize = 10_000;
const MIN_INTERVAL: Duration = Duration::from_secs(1);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The ratio between two adjacent values that are distinguished.
const STEP: f64 = 1.05;

impl CloudWatch {
    /// Creates an observer with the defaults.
    pub fn new(client: Client) -> Self {
        CloudWatch {
            settings: Settings {
                client: aws::cloudwatch::with_timeout(&client, aws::ATTEMPT_TIMEOUT),
                namespace: "redrive".into(),
                interval: Duration::from_secs(60),
            },
            shared: Arc::default(),
        }
    }

    /// Sets the CloudWatch namespace of the metrics. Default: `redrive`.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<Arc<str>>) -> Self {
        self.settings.namespace = namespace.into();
        self
    }

    /// Sets the time between two calls: at least 1 s, which
    /// [`ResilientBuilder::build`](crate::ResilientBuilder::build) checks. Default: a minute, the resolution
    /// that CloudWatch stores.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.settings.interval = interval;
        self
    }

    /// Returns the number of metrics that were dropped because they could not be sent.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Sends the pending metrics, and returns when they are sent or after 10 s.
    pub async fn close(&self) {
        let sent = timeout(CLOSE_TIMEOUT, self.shared.send(&self.settings)).await;
        if sent.is_err() {
            tracing::warn!("last metrics not sent to CloudWatch within 10 s");
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
    // If the runtime shuts down, the task is dropped, and the next event starts another one.
    let _running = Running(shared.clone());
    loop {
        tokio::select! {
            () = sleep(settings.interval) => {}
            () = now.notified() => {}
        }
        // The task holds no strong reference while it waits, so that it ends with the last clone.
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
        unsent.extend(self.take());
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
                        "metrics not sent to CloudWatch; retrying with the next ones"
                    );
                    return;
                }
            }
        }
    }

    fn take(&self) -> Vec<MetricDatum> {
        let now = DateTime::from(SystemTime::now());
        let mut data = Vec::new();
        let All { each, standing } = &mut *self.gathered();
        for gathered in each {
            if let Some((metric, count)) = standing.tell(gathered.stream.as_deref()) {
                gathered.add(metric, count);
            }
            gathered.take(self.application.name(), now, &mut data);
        }
        data
    }
}

impl All {
    fn hear(&mut self, event: &Event<'_>) {
        let All { each, standing } = self;
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
}

impl Gathered {
    fn new(stream: Option<&str>) -> Self {
        Gathered {
            stream: stream.map(str::to_owned),
            sums: [0.0; Metric::COUNT],
            values: std::array::from_fn(|_| BTreeMap::new()),
        }
    }

    fn add(&mut self, metric: Metric, value: f64) {
        match metric.kind() {
            Kind::Sum => self.sums[metric as usize] += value,
            Kind::Distribution => *self.values[metric as usize].entry(step(value)).or_default() += 1,
        }
    }

    fn take(&mut self, application: &str, now: DateTime, data: &mut Vec<MetricDatum>) {
        let dimension = |name: &str, value: &str| Dimension::builder().name(name).value(value).build();
        let mut dimensions = vec![dimension("Application", application)];
        dimensions.extend(self.stream.iter().map(|stream| dimension("Stream", stream)));
        for &metric in Metric::ALL {
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

/// Returns the step of a value: its logarithm to the base [`STEP`], rounded. All values up to 0.001 share one
/// step.
fn step(value: f64) -> i32 {
    match value > 0.001 {
        // The cast saturates, at values that no time or count reaches.
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
    fn attach(&self, application: &str) -> Result<(), ConfigError> {
        let interval = self.settings.interval;
        if interval < MIN_INTERVAL {
            let problem = format!("must be at least 1 s, not {interval:?}");
            return Err(ConfigError::new("interval", problem));
        }
        self.shared.application.attach(application)
    }

    fn on(&self, event: &Event<'_>) {
        self.ensure_running();
        self.shared.gathered().hear(event);
    }

    fn on_success(&self, success: &Success<'_>) -> bool {
        self.ensure_running();
        let mut gathered = self.shared.gathered();
        for event in success.events() {
            gathered.hear(&event);
        }
        true
    }

    fn flush(&self) {
        self.shared.now.notify_one();
    }
}

impl fmt::Debug for CloudWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudWatch")
            .field("application", &self.shared.application.name())
            .field("namespace", &self.settings.namespace)
            .field("interval", &self.settings.interval)
            .field("dropped", &self.dropped())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cloudwatch() -> CloudWatch {
        let version = aws_sdk_cloudwatch::config::BehaviorVersion::latest();
        let config = aws_sdk_cloudwatch::Config::builder().behavior_version(version);
        CloudWatch::new(Client::from_conf(config.build()))
    }

    #[test]
    fn the_documented_defaults() {
        let Settings {
            namespace, interval, ..
        } = cloudwatch().settings;
        assert_eq!((&*namespace, interval), ("redrive", Duration::from_secs(60)));
    }

    #[test]
    fn interval_below_a_second_is_refused() {
        let short = cloudwatch().interval(Duration::from_millis(999));
        assert_eq!(
            short.attach("billing").expect_err("refused").setting(),
            "interval"
        );
        assert_eq!(cloudwatch().interval(MIN_INTERVAL).attach("billing"), Ok(()));
    }

    #[test]
    fn a_value_is_off_by_no_more_than_was_said() {
        // Below 0.1, the rounding to three decimals dominates.
        for exponent in 0..9 {
            for digits in 1..100 {
                let exact = f64::from(digits) / 10.0 * 10_f64.powi(exponent);
                let sent = value(step(exact));
                assert!((sent / exact - 1.0).abs() < 0.05, "{exact}: {sent}");
            }
        }
        assert_eq!(value(step(0.0)), 0.0);
        // Small whole numbers, such as counts of records, stay distinct.
        let steps: std::collections::BTreeSet<i32> = (1..20).map(f64::from).map(step).collect();
        assert_eq!(steps.len(), 19);
    }
}
