//! The throughput of a shard that this worker reads, measured and averaged as in KCL.

use std::time::Duration;

use tokio::time::Instant;

/// The weight of the newest measurement in the average (KCL's value).
const NEWEST: f64 = 0.5;

/// The shortest period that is measured. Two writes to a row may follow each other at once.
const SHORTEST: Duration = Duration::from_secs(1);

/// The exponential moving average of a shard's throughput.
#[derive(Debug)]
pub(super) struct Throughput {
    /// The average in KiB per second. `None` before the shard's first record.
    average: Option<f64>,
    /// The payload bytes that were fetched since `since`. `None` if the consumer reports no bytes.
    bytes: Option<u64>,
    since: Instant,
}

impl Throughput {
    /// Continues the average that the previous owner has stored.
    pub(super) fn continued(average: Option<f64>, now: Instant) -> Self {
        Throughput {
            average,
            bytes: None,
            since: now,
        }
    }

    pub(super) fn note_fetched(&mut self, bytes: usize) {
        let before = self.bytes.unwrap_or_default();
        self.bytes = Some(before.saturating_add(bytes as u64));
    }

    /// Returns the average in KiB per second, including the time since the last call. Returns `None` if there is
    /// nothing to store.
    pub(super) fn average(&mut self, now: Instant) -> Option<f64> {
        let bytes = self.bytes?;
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= SHORTEST {
            let measured = bytes as f64 / 1024.0 / elapsed.as_secs_f64();
            self.average = match self.average {
                Some(average) => Some(average + NEWEST * (measured - average)),
                None => (bytes > 0).then_some(measured),
            };
            (self.bytes, self.since) = (Some(0), now);
        }
        self.average
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn average_follows_the_measurements() {
        let start = Instant::now();
        let mut throughput = Throughput::continued(None, start);
        throughput.note_fetched(10 * 1024);
        throughput.note_fetched(10 * 1024);
        assert_eq!(throughput.average(start + 2 * SECOND), Some(10.0));
        throughput.note_fetched(30 * 1024);
        assert_eq!(throughput.average(start + 3 * SECOND), Some(20.0));
        assert_eq!(throughput.average(start + 4 * SECOND), Some(10.0));
        // Too soon for a measurement.
        throughput.note_fetched(1024);
        assert_eq!(throughput.average(start + 4 * SECOND + SECOND / 2), Some(10.0));
        assert_eq!(throughput.average(start + 5 * SECOND), Some(5.5));
    }

    #[test]
    fn shard_without_a_record_has_no_throughput() {
        let start = Instant::now();
        let mut throughput = Throughput::continued(None, start);
        throughput.note_fetched(0);
        assert_eq!(throughput.average(start + SECOND), None);
        throughput.note_fetched(2048);
        assert_eq!(throughput.average(start + 2 * SECOND), Some(2.0));
    }

    #[test]
    fn stored_average_is_continued_only_by_a_consumer_that_measures() {
        let start = Instant::now();
        let mut throughput = Throughput::continued(Some(8.0), start);
        assert_eq!(throughput.average(start + SECOND), None);
        throughput.note_fetched(0);
        assert_eq!(throughput.average(start + 2 * SECOND), Some(4.0));
    }
}
