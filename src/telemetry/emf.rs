//! Metrics in the log, in CloudWatch's embedded metric format: JSON lines from which CloudWatch Logs extracts
//! metrics.

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::application::Application;
use super::gauges::Standing;
use super::metric::{Kind, Metric, measure};
use crate::config::ConfigError;
use crate::observer::{Event, Observer, ShardEvent, Success};

/// The maximum number of values of a metric in a line.
const VALUES: usize = 100;

/// Writes metrics as lines of CloudWatch's
/// [embedded metric format](https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html),
/// to standard output unless another writer is given.
///
/// The observer writes one line for each stream, and one for the metrics that belong to no stream: in Lambda
/// before each answer, elsewhere once a minute and at the end. A line has the sums since the previous one. A
/// distribution with more than 100 values is represented by a random sample of 100 that includes the highest.
/// The dimensions are `Application` and `Stream`.
///
/// Under KCL's MultiLangDaemon, standard output belongs to the daemon: pass `std::io::stderr()` to
/// [`writer`](Emf::writer).
///
/// | setting | default |
/// |---|---|
/// | [`namespace`](Emf::namespace) | `redrive` |
/// | [`interval`](Emf::interval) | a minute |
/// | [`writer`](Emf::writer) | standard output |
pub struct Emf {
    application: Application,
    namespace: String,
    interval: Duration,
    state: Mutex<State>,
    dropped: AtomicU64,
}

struct State {
    writer: Box<dyn Write + Send>,
    streams: Vec<(Option<String>, Gathered)>,
    standing: Standing,
    written: Instant,
    heard: u64,
    rng: SmallRng,
}

/// The metrics of a stream since the last line.
struct Gathered {
    sums: [f64; Metric::COUNT],
    values: [Values; Metric::COUNT],
}

/// A uniform random sample of values, and the highest value.
#[derive(Default)]
struct Values {
    kept: Vec<f64>,
    seen: u64,
    highest: f64,
}

impl Emf {
    /// Creates an observer with the defaults.
    pub fn new() -> Self {
        Emf {
            application: Application::default(),
            namespace: "redrive".to_owned(),
            interval: Duration::from_secs(60),
            state: Mutex::new(State {
                writer: Box::new(io::stdout()),
                streams: Vec::new(),
                standing: Standing::default(),
                written: Instant::now(),
                heard: 0,
                rng: SmallRng::seed_from_u64(rand::random()),
            }),
            dropped: AtomicU64::new(0),
        }
    }

    /// Sets the CloudWatch namespace of the metrics. Default: `redrive`.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Sets the minimum time between two writes of a service. Any time is valid: with zero, the observer writes
    /// each time that it checks the clock. Default: a minute.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets the writer of the lines. Default: standard output.
    #[must_use]
    pub fn writer(self, writer: impl Write + Send + 'static) -> Self {
        self.state().writer = Box::new(writer);
        self
    }

    /// Returns the number of lines that could not be written. They are not reported anywhere else.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, state: &mut State, event: &Event<'_>) {
        let State {
            streams,
            standing,
            rng,
            ..
        } = state;
        standing.hear(event);
        let mut at = None;
        measure(event, |metric, value| {
            let at = *at.get_or_insert_with(|| {
                let stream = event.stream();
                let known = streams.iter().position(|(known, _)| known.as_deref() == stream);
                known.unwrap_or_else(|| {
                    streams.push((stream.map(ToOwned::to_owned), Gathered::new()));
                    streams.len() - 1
                })
            });
            streams[at].1.add(metric, value, rng);
        });
        state.heard += 1;
        // Reading the clock for every event would be too costly for records that succeed.
        let looks = matches!(
            event,
            Event::Shard {
                event: ShardEvent::Fetched { .. },
                ..
            }
        ) || state.heard.is_multiple_of(256);
        if looks && state.written.elapsed() >= self.interval {
            self.write(state);
        }
    }

    fn write(&self, state: &mut State) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_millis() as u64);
        for (stream, gathered) in &mut state.streams {
            if let Some((metric, count)) = state.standing.tell(stream.as_deref()) {
                gathered.add(metric, count, &mut state.rng);
            }
            if gathered.is_empty() {
                continue;
            }
            let mut line = self.line(now, stream.as_deref(), gathered).to_string();
            line.push('\n');
            gathered.clear();
            if state.writer.write_all(line.as_bytes()).is_err() {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        let _ = state.writer.flush();
        state.written = Instant::now();
    }

    fn line(&self, now: u64, stream: Option<&str>, gathered: &Gathered) -> Value {
        let mut line = Map::new();
        let mut metrics = Vec::new();
        for (metric, (sum, values)) in Metric::ALL.iter().zip(gathered.sums.iter().zip(&gathered.values)) {
            let value = match metric.kind() {
                Kind::Distribution if values.kept.is_empty() => continue,
                Kind::Distribution => values.to_json(),
                // Streams get zeros too, so that rates can be computed.
                _ if *sum == 0.0 && (stream.is_none() || !metric.is_always_told()) => continue,
                _ => json!(*sum as u64),
            };
            metrics.push(json!({ "Name": metric.name(), "Unit": metric.unit().as_str() }));
            line.insert(metric.name().to_owned(), value);
        }
        let dimensions = match stream {
            Some(stream) => {
                line.insert("Stream".to_owned(), json!(stream));
                json!([["Application", "Stream"]])
            }
            None => json!([["Application"]]),
        };
        line.insert("Application".to_owned(), json!(self.application.name()));
        let directive = json!({
            "Namespace": self.namespace,
            "Dimensions": dimensions,
            "Metrics": metrics,
        });
        line.insert(
            "_aws".to_owned(),
            json!({ "Timestamp": now, "CloudWatchMetrics": [directive] }),
        );
        Value::Object(line)
    }
}

impl Gathered {
    fn new() -> Self {
        Gathered {
            sums: [0.0; Metric::COUNT],
            values: std::array::from_fn(|_| Values::default()),
        }
    }

    fn add(&mut self, metric: Metric, value: f64, rng: &mut SmallRng) {
        match metric.kind() {
            Kind::Distribution => self.values[metric as usize].add(value, rng),
            Kind::Sum => self.sums[metric as usize] += value,
        }
    }

    fn is_empty(&self) -> bool {
        self.sums.iter().all(|sum| *sum == 0.0) && self.values.iter().all(|values| values.seen == 0)
    }

    fn clear(&mut self) {
        self.sums.fill(0.0);
        for values in &mut self.values {
            values.kept.clear();
            (values.seen, values.highest) = (0, 0.0);
        }
    }
}

impl Values {
    fn add(&mut self, value: f64, rng: &mut SmallRng) {
        self.seen += 1;
        self.highest = self.highest.max(value);
        if self.kept.len() < VALUES {
            self.kept.reserve_exact(VALUES - self.kept.len());
            self.kept.push(value);
            return;
        }
        let place = rng.random_range(0..self.seen);
        if let Some(kept) = usize::try_from(place)
            .ok()
            .and_then(|place| self.kept.get_mut(place))
        {
            *kept = value;
        }
    }

    fn to_json(&self) -> Value {
        let mut values = self.kept.clone();
        if !values.contains(&self.highest)
            && let Some(one) = values.last_mut()
        {
            *one = self.highest;
        }
        // Rounded to three decimals, a microsecond for latencies.
        values
            .iter()
            .map(|value| json!((value * 1_000.0).round() / 1_000.0))
            .collect()
    }
}

impl Default for Emf {
    fn default() -> Self {
        Emf::new()
    }
}

impl Observer for Emf {
    fn attach(&self, application: &str) -> Result<(), ConfigError> {
        self.application.attach(application)
    }

    fn on(&self, event: &Event<'_>) {
        self.hear(&mut self.state(), event);
    }

    fn on_success(&self, success: &Success<'_>) -> bool {
        let mut state = self.state();
        for event in success.events() {
            self.hear(&mut state, &event);
        }
        true
    }

    fn flush(&self) {
        self.write(&mut self.state());
    }
}

impl fmt::Debug for Emf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emf")
            .field("application", &self.application.name())
            .field("namespace", &self.namespace)
            .field("interval", &self.interval)
            .field("dropped", &self.dropped())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_defaults() {
        let emf = Emf::default();
        assert_eq!(
            (&*emf.namespace, emf.interval),
            ("redrive", Duration::from_secs(60))
        );
    }
}
