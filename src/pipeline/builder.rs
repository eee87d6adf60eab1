//! The builder of a pipeline, with its defaults.

use std::time::Duration;

use super::{Capacity, ExpiryPolicy, Pipeline, RecordOrder};
use crate::config::ConfigError;
use crate::retention::Retention;

/// Builds a [`Pipeline`].
///
/// | setting | default |
/// |---|---|
/// | [`ordering`](PipelineBuilder::ordering) | [`RecordOrder::PartitionKey`] |
/// | [`in_flight`](PipelineBuilder::in_flight) | 4,096 |
/// | [`span`](PipelineBuilder::span) | 262,144 |
/// | [`capacity`](PipelineBuilder::capacity) | [`Capacity::default`], not shared |
/// | [`drain`](PipelineBuilder::drain) | 20 s |
/// | [`checkpoint_interval`](PipelineBuilder::checkpoint_interval) | 1 s |
/// | [`retention`](PipelineBuilder::retention) | unknown |
/// | [`expiry_policy`](PipelineBuilder::expiry_policy) | [`ExpiryPolicy::Hold`] |
#[derive(Debug, Clone)]
#[must_use]
pub struct PipelineBuilder {
    ordering: RecordOrder,
    in_flight: usize,
    span: usize,
    capacity: Option<Capacity>,
    drain: Duration,
    checkpoint_interval: Duration,
    retention: Option<Duration>,
    on_expiring: ExpiryPolicy,
}

/// The maximum of [`in_flight`](PipelineBuilder::in_flight). The run of a shard allocates two bits for each
/// record that may be in flight.
const MAX_IN_FLIGHT: usize = 1 << 24;

impl PipelineBuilder {
    pub(super) fn new() -> Self {
        PipelineBuilder {
            ordering: RecordOrder::default(),
            in_flight: 4_096,
            span: 262_144,
            capacity: None,
            drain: Duration::from_secs(20),
            checkpoint_interval: Duration::from_secs(1),
            retention: None,
            on_expiring: ExpiryPolicy::default(),
        }
    }

    /// Sets the order in which records are processed.
    pub fn ordering(mut self, ordering: RecordOrder) -> Self {
        self.ordering = ordering;
        self
    }

    /// Sets the maximum number of records in flight per shard, which are read and not settled: 1 to
    /// 16,777,216.
    pub fn in_flight(mut self, records: usize) -> Self {
        self.in_flight = records;
        self
    }

    /// Sets the maximum number of records between a shard's watermark and its newest record read: at least 1.
    pub fn span(mut self, records: usize) -> Self {
        self.span = records;
        self
    }

    /// Sets the bounds that all shards of the process share.
    pub fn capacity(mut self, capacity: Capacity) -> Self {
        self.capacity = Some(capacity);
        self
    }

    /// Sets how long running processor calls and writes of dead letters may take once a shutdown has begun.
    /// Any time is valid.
    pub fn drain(mut self, time: Duration) -> Self {
        self.drain = time;
        self
    }

    /// Sets the minimum time between two checkpoints of [`run_until`](Pipeline::run_until), unless a dead letter
    /// makes the next one urgent. Any interval is valid. A [`Consumer`](crate::Consumer) uses the interval of
    /// its checkpoint store instead.
    pub fn checkpoint_interval(mut self, interval: Duration) -> Self {
        self.checkpoint_interval = interval;
        self
    }

    /// Sets how long the stream keeps a record: at least 1 ms. A shard that waits for a record older than four
    /// fifths of this time reports that record every few minutes
    /// ([`RecordEvent::Expiring`](crate::observer::RecordEvent::Expiring)). A
    /// [`Consumer`](crate::Consumer) asks the stream.
    pub fn retention(mut self, time: Duration) -> Self {
        self.retention = Some(time);
        self
    }

    /// Sets the treatment of a held record that the stream is about to drop.
    pub fn expiry_policy(mut self, on_expiring: ExpiryPolicy) -> Self {
        self.on_expiring = on_expiring;
        self
    }

    /// Builds the pipeline.
    ///
    /// # Errors
    ///
    /// A setting cannot be used. The error names the setting.
    pub fn build(self) -> Result<Pipeline, ConfigError> {
        if !(1..=MAX_IN_FLIGHT).contains(&self.in_flight) {
            let problem = format!(
                "must be at least 1 and at most {MAX_IN_FLIGHT}, not {}",
                self.in_flight
            );
            return Err(ConfigError::new("in_flight", problem));
        }
        if self.span == 0 {
            return Err(ConfigError::new("span", "must be at least 1"));
        }
        if self.retention.is_some_and(|time| time.as_millis() == 0) {
            let problem = "must be at least 1 ms; leave it out if the retention is unknown";
            return Err(ConfigError::new("retention", problem));
        }
        Ok(self.make())
    }

    pub(super) fn make(self) -> Pipeline {
        Pipeline {
            ordering: self.ordering,
            in_flight: self.in_flight,
            span: self.span,
            capacity: self.capacity.unwrap_or_default(),
            drain: self.drain,
            checkpoint_interval: self.checkpoint_interval,
            retention: self.retention.map(Retention::of).unwrap_or_default(),
            on_expiring: self.on_expiring,
            within: None,
            one_by_one: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_defaults() {
        for pipeline in [Pipeline::default(), Pipeline::builder().build().expect("valid")] {
            assert_eq!(pipeline.ordering, RecordOrder::PartitionKey);
            assert_eq!((pipeline.in_flight, pipeline.span), (4_096, 262_144));
            assert_eq!(pipeline.drain, Duration::from_secs(20));
            assert_eq!(pipeline.checkpoint_interval, Duration::from_secs(1));
            assert_eq!(pipeline.retention.get(), None);
            assert_eq!(pipeline.on_expiring, ExpiryPolicy::Hold);
            assert!(pipeline.within.is_none() && !pipeline.one_by_one);
            assert_eq!(
                format!("{:?}", pipeline.shared_capacity()),
                format!("{:?}", Capacity::default())
            );
        }
    }

    #[test]
    fn invalid_settings_are_refused_by_name() {
        let builder = Pipeline::builder;
        for (builder, setting) in [
            (builder().in_flight(0), "in_flight"),
            (builder().in_flight(usize::MAX), "in_flight"),
            (builder().span(0), "span"),
            (builder().retention(Duration::ZERO), "retention"),
            (builder().retention(Duration::from_nanos(999_999)), "retention"),
        ] {
            assert_eq!(builder.build().expect_err("refused").setting(), setting);
        }
        let largest = builder().in_flight(MAX_IN_FLIGHT).span(usize::MAX);
        let largest = largest.retention(Duration::MAX).drain(Duration::MAX);
        assert!(largest.build().is_ok());
    }
}
