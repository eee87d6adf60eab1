//! Metrics through the `metrics` facade, for Prometheus, StatsD, OpenTelemetry or any other installed
//! recorder.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use metrics::{Counter, Histogram, Label, Unit as FacadeUnit};

use super::application::Application;
use super::gauges::Standing;
use super::metric::{Kind, Metric, Unit, measure};
use crate::config::ConfigError;
use crate::observer::{Event, Observer, ProtectionEvent, RecordEvent, ShardEvent, Success};
use crate::record::{Record, ShardId};

/// Records metrics with the recorder that the process has installed for the
/// [`metrics`](https://docs.rs/metrics) facade.
///
/// The names are those of [`Metric`] in snake case: `redrive_records_processed_total`,
/// `redrive_attempt_latency_seconds`. Sums are counters and distributions are histograms. Times are in
/// seconds. The labels are `application` and `stream`. In addition, `redrive_attempts_failed_total` has the
/// labels `class`, `scope` and `code`, and `redrive_records_dead_lettered_total` has the label `reason`.
///
/// These metrics are gauges:
///
/// - `redrive_records_in_flight`: the sum over all shards of a stream that this process reads,
/// - `redrive_oldest_unsettled_age_seconds`: the maximum over these shards,
/// - `redrive_breakers_open`: 0 or 1 for each `dependency`,
/// - `redrive_shards_stopped`: the number of shards of a stream that the dead-letter guard has stopped.
///
/// The observer allocates nothing for a record that succeeds. It takes no lock for such a record either, unless
/// the process reads several streams or [`shard_label`](Metrics::shard_label) is on.
///
/// | setting | default |
/// |---|---|
/// | [`shard_label`](Metrics::shard_label) | off |
pub struct Metrics {
    application: Application,
    shard_label: bool,
    /// The handles of the first stream. Most processes read only one, which then needs no lock.
    first: OnceLock<Handles>,
    others: Mutex<Vec<Arc<Handles>>>,
    shards: Mutex<BTreeMap<(String, ShardId), (usize, Duration)>>,
    standing: Mutex<Standing>,
    /// The codes of failures that have a series.
    codes: Mutex<HashSet<String>>,
}

/// The maximum number of codes with a series of their own. All others are counted as `other`.
const MOST_CODES: usize = 100;
/// The maximum length of a code in bytes. A longer code is probably a text and is counted as `other`.
const LONGEST_CODE: usize = 64;

/// The counters and histograms of a stream, or of a shard of it.
struct Handles {
    stream: Option<String>,
    /// The name as the records of a reader share it. A record with this name belongs to the stream, which a
    /// comparison of two pointers shows.
    shared: OnceLock<Arc<str>>,
    shard: Option<ShardId>,
    each: [Handle; Metric::COUNT],
}

enum Handle {
    Counter(Counter),
    Histogram(Histogram),
    /// No handle: the metric is a gauge, or has additional labels.
    Elsewhere,
}

impl Metrics {
    /// Creates an observer with the defaults.
    pub fn new() -> Self {
        Metrics {
            application: Application::default(),
            shard_label: false,
            first: OnceLock::new(),
            others: Mutex::default(),
            shards: Mutex::default(),
            standing: Mutex::default(),
            codes: Mutex::default(),
        }
    }

    /// Sets whether the metrics of a shard have the label `shard`. Each reshard adds new shard ids, and each
    /// id is a series that the metrics system stores. Default: off.
    #[must_use]
    pub fn shard_label(mut self, on: bool) -> Self {
        self.shard_label = on;
        self
    }

    /// Returns the name of a metric by the conventions of Prometheus, such as
    /// `redrive_records_processed_total`.
    pub fn name(metric: Metric) -> String {
        name(metric)
    }

    /// Describes every metric to the recorder. [`new`](Metrics::new) does not, because the recorder may be
    /// installed later.
    pub fn describe() {
        for &metric in Metric::ALL {
            let (name, text) = (name(metric), metric.description());
            let unit = match (metric.unit(), metric.kind()) {
                (Unit::Milliseconds, _) => FacadeUnit::Seconds,
                (Unit::Bytes, _) => FacadeUnit::Bytes,
                (Unit::Count, _) => FacadeUnit::Count,
            };
            match (metric, metric.kind()) {
                _ if is_gauge(metric) => metrics::describe_gauge!(name, unit, text),
                (_, Kind::Sum) => metrics::describe_counter!(name, unit, text),
                (_, Kind::Distribution) => metrics::describe_histogram!(name, unit, text),
            }
        }
    }

    fn labels(&self, stream: Option<&str>, shard: Option<&ShardId>) -> Vec<Label> {
        let mut labels = vec![Label::new("application", self.application.name().to_owned())];
        labels.extend(stream.map(|stream| Label::new("stream", stream.to_owned())));
        labels.extend(shard.map(|shard| Label::new("shard", shard.as_str().to_owned())));
        labels
    }

    fn handles(&self, stream: Option<&str>, shard: Option<&ShardId>) -> Handles {
        let labels = self.labels(stream, shard);
        Handles {
            stream: stream.map(str::to_owned),
            shared: OnceLock::new(),
            shard: shard.cloned(),
            each: std::array::from_fn(|place| Metric::ALL[place]).map(|metric| match metric.kind() {
                _ if is_gauge(metric) || has_own_labels(metric) => Handle::Elsewhere,
                Kind::Sum => Handle::Counter(metrics::counter!(name(metric), labels.clone())),
                Kind::Distribution => Handle::Histogram(metrics::histogram!(name(metric), labels.clone())),
            }),
        }
    }

    /// Records the metrics of an event with the handles of its stream and shard.
    #[cold]
    #[inline(never)]
    fn record(&self, event: &Event<'_>) {
        let (stream, shard) = (event.stream(), event.shard().filter(|_| self.shard_label));
        // An event without a stream must not take the first place: the check of the dead-letter target comes
        // before the first record.
        let first = stream.map(|_| self.first.get_or_init(|| self.handles(stream, shard)));
        if let Some(first) = first.filter(|first| first.is_of(stream, shard)) {
            return first.record_all(event);
        }
        let handles = {
            let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
            match others.iter().find(|handles| handles.is_of(stream, shard)) {
                Some(known) => known.clone(),
                None => {
                    let new = Arc::new(self.handles(stream, shard));
                    others.push(new.clone());
                    new
                }
            }
        };
        handles.record_all(event);
    }

    /// Returns the handles of the first stream, if the record belongs to it and there is no label `shard`.
    #[inline]
    fn usual(&self, record: &Record) -> Option<&Handles> {
        let first = self.first.get()?;
        let shared = first.shared.get();
        let is_known = shared.is_some_and(|shared| Arc::ptr_eq(shared, record.shared_stream()));
        (is_known || first.has_records_like(record)).then_some(first)
    }

    /// Counts failed attempts and dead letters, whose labels differ from event to event.
    fn failed(&self, record: &Record, event: &RecordEvent<'_>) {
        let shard = Some(record.shard()).filter(|_| self.shard_label);
        let mut labels = self.labels(Some(record.stream()), shard);
        match event {
            RecordEvent::AttemptFailed { failure, records, .. } => {
                let verdict = failure.reveal().verdict();
                labels.push(Label::new("class", verdict.class().as_str()));
                labels.push(Label::new("scope", verdict.scope().as_str()));
                labels.push(Label::new("code", self.code(verdict.code())));
                metrics::counter!(name(Metric::AttemptsFailed), labels).increment(*records as u64);
            }
            RecordEvent::DeadLettered { reason, .. } => {
                labels.push(Label::new("reason", *reason));
                metrics::counter!(name(Metric::RecordsDeadLettered), labels).increment(1);
            }
            _ => {}
        }
    }

    /// Returns the label of a code. Each code is a series, and a classifier may create any number of codes.
    fn code(&self, code: Option<&str>) -> String {
        let code = code.unwrap_or("none");
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = !codes.contains(code);
        if is_new && (codes.len() >= MOST_CODES || code.len() > LONGEST_CODE) {
            return "other".to_owned();
        }
        if is_new {
            codes.insert(code.to_owned());
        }
        code.to_owned()
    }

    #[cold]
    #[inline(never)]
    fn on_other(&self, event: &Event<'_>) {
        self.hear(event);
        self.record(event);
    }

    /// Records the gauges and the counters with additional labels.
    fn hear(&self, event: &Event<'_>) {
        self.stopped(event);
        match event {
            Event::Record {
                record,
                event: event @ (RecordEvent::AttemptFailed { .. } | RecordEvent::DeadLettered { .. }),
            } => self.failed(record, event),
            Event::Protection(
                ProtectionEvent::BreakerOpened { dependency, .. }
                | ProtectionEvent::BreakerHalfOpened { dependency },
            ) => {
                self.breaker(*dependency, true);
            }
            Event::Protection(ProtectionEvent::BreakerClosed { dependency, .. }) => {
                self.breaker(*dependency, false)
            }
            Event::Shard {
                stream,
                shard,
                event: ShardEvent::Status {
                    in_flight, oldest, ..
                },
            } => self.stands(stream, shard, Some((*in_flight, oldest.unwrap_or_default()))),
            Event::Shard {
                stream,
                shard,
                event: ShardEvent::Ended | ShardEvent::LeaseLost | ShardEvent::HandedOver,
            } => self.stands(stream, shard, None),
            _ => {}
        }
    }

    fn breaker(&self, dependency: Option<&str>, open: bool) {
        let mut labels = self.labels(None, None);
        labels.push(Label::new("dependency", dependency.unwrap_or("any").to_owned()));
        metrics::gauge!(name(Metric::BreakersOpen), labels).set(if open { 1.0 } else { 0.0 });
    }

    /// Sets the gauge of stopped shards, if the event changes their number.
    fn stopped(&self, event: &Event<'_>) {
        let Some(stream) = event.stream() else { return };
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = standing.stopped(stream);
        standing.hear(event);
        let now = standing.stopped(stream);
        if now != before {
            let labels = self.labels(Some(stream), None);
            metrics::gauge!(name(Metric::ShardsStopped), labels).set(now as f64);
        }
    }

    /// Sets the gauges of a stream from the status of one of its shards. `None`: the shard is no longer read
    /// here.
    fn stands(&self, stream: &str, shard: &ShardId, now: Option<(usize, Duration)>) {
        let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (stream.to_owned(), shard.clone());
        match now {
            Some(now) => drop(shards.insert(key, now)),
            None if shards.remove(&key).is_none() => return,
            None => {}
        }
        let of_stream = || {
            shards
                .iter()
                .filter(|((of, _), _)| of == stream)
                .map(|(_, stands)| stands)
        };
        let in_flight: usize = of_stream().map(|(in_flight, _)| in_flight).sum();
        let oldest = of_stream().map(|(_, oldest)| *oldest).max().unwrap_or_default();
        let set = |metric, value| metrics::gauge!(name(metric), self.labels(Some(stream), None)).set(value);
        set(Metric::RecordsInFlight, in_flight as f64);
        set(Metric::OldestUnsettledAge, oldest.as_secs_f64());
    }
}

/// Returns true for a metric whose current value counts, not the number of its reports.
const fn is_gauge(metric: Metric) -> bool {
    matches!(
        metric,
        Metric::RecordsInFlight | Metric::OldestUnsettledAge | Metric::BreakersOpen | Metric::ShardsStopped
    )
}

/// Returns true for a metric with labels that differ from event to event.
const fn has_own_labels(metric: Metric) -> bool {
    matches!(metric, Metric::AttemptsFailed | Metric::RecordsDeadLettered)
}

fn name(metric: Metric) -> String {
    let mut name = "redrive".to_owned();
    for letter in metric.name().chars() {
        if letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    match (metric.unit(), metric.kind()) {
        (Unit::Milliseconds, _) => name.push_str("_seconds"),
        (_, Kind::Sum) => name.push_str("_total"),
        (_, Kind::Distribution) => {}
    }
    name
}

impl Handles {
    fn is_of(&self, stream: Option<&str>, shard: Option<&ShardId>) -> bool {
        self.stream.as_deref() == stream && self.shard.as_ref() == shard
    }

    /// Compares the name of the record's stream.
    #[cold]
    #[inline(never)]
    fn has_records_like(&self, record: &Record) -> bool {
        let is_of = self.is_of(Some(record.stream()), None);
        if is_of {
            self.shared.get_or_init(|| record.shared_stream().clone());
        }
        is_of
    }

    /// Records the metrics of the two events of a success.
    #[inline]
    fn record_success(&self, success: &Success<'_>) {
        let seconds = |nanos: i64| nanos as f64 / 1_000_000_000.0;
        if let Handle::Histogram(latency) = &self.each[Metric::AttemptLatency as usize] {
            latency.record(seconds(success.nanos()));
        }
        if let (Handle::Histogram(latency), Some(age)) = (
            &self.each[Metric::EndToEndLatency as usize],
            success.record().age_nanos(),
        ) {
            latency.record(seconds(age));
        }
        if let Handle::Counter(processed) = &self.each[Metric::RecordsProcessed as usize] {
            processed.increment(1);
        }
    }

    #[inline(always)]
    fn record_all(&self, event: &Event<'_>) {
        measure(event, |metric, value| self.record(metric, value));
    }

    #[inline(always)]
    fn record(&self, metric: Metric, value: f64) {
        match &self.each[metric as usize] {
            Handle::Counter(counter) => counter.increment(value as u64),
            Handle::Histogram(histogram) => histogram.record(match metric.unit() {
                Unit::Milliseconds => value / 1_000.0,
                Unit::Count | Unit::Bytes => value,
            }),
            Handle::Elsewhere => {}
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Observer for Metrics {
    fn attach(&self, application: &str) -> Result<(), ConfigError> {
        self.application.attach(application)
    }

    fn on(&self, event: &Event<'_>) {
        // Records that succeed cause only these two events. They change neither gauges nor additional labels.
        match event {
            Event::Record {
                record,
                event: RecordEvent::Settled { .. } | RecordEvent::AttemptEnded { .. },
            } => match self.usual(record) {
                Some(handles) => handles.record_all(event),
                None => self.record(event),
            },
            _ => self.on_other(event),
        }
    }

    fn on_success(&self, success: &Success<'_>) -> bool {
        let usual = self.usual(success.record());
        usual.map(|handles| handles.record_success(success)).is_some()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .field("application", &self.application.name())
            .field("shard_label", &self.shard_label)
            .finish_non_exhaustive()
    }
}
