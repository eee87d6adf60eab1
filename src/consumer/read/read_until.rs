//! The time up to which everything that arrived in a shard was read.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::consumer::data_loss::{CLOCK_SKEW, Expected};
use crate::record::Record;

/// The time up to which everything that arrived was read.
#[derive(Debug, Default)]
pub(in crate::consumer) struct ReadUntil {
    time: Option<SystemTime>,
    /// The time at which a page last stated `time`.
    stated: Option<Instant>,
}

/// A page of records, or an event of a subscription.
pub(in crate::consumer) struct Page<'a> {
    /// The time at which the call began.
    pub(in crate::consumer) called: SystemTime,
    pub(in crate::consumer) behind_millis: Option<i64>,
    /// True if the page ends a closed shard.
    pub(in crate::consumer) is_end: bool,
    pub(in crate::consumer) records: &'a [Record],
}

/// Interval at which an idle shard states the time.
const IDLE_INTERVAL: Duration = Duration::from_secs(60);

impl ReadUntil {
    /// Takes the time from the expectation of the checkpoint at which reading starts.
    pub(in crate::consumer) fn of(expected: Option<&Expected>) -> Self {
        ReadUntil {
            time: expected.and_then(|expected| expected.read_until),
            stated: None,
        }
    }

    pub(in crate::consumer) fn time(&self) -> Option<SystemTime> {
        self.time
    }

    /// Returns the time, if a page has stated it: not only the checkpoint at which reading started.
    pub(in crate::consumer) fn stated_time(&self) -> Option<SystemTime> {
        self.time.filter(|_| self.stated.is_some())
    }

    /// Returns the time up to which everything that arrived is read with this page. Pages without records
    /// return the time only once a minute.
    ///
    /// At the end of a closed shard the time of the call does not count: the shard was closed at an unknown
    /// time, and its children hold what arrived since. If no time is known, the start of the retention
    /// counts, which `kept_since` returns. Kinesis still has the shard, so its children hold nothing that is
    /// trimmed yet.
    pub(in crate::consumer) fn advance(
        &mut self,
        page: &Page<'_>,
        kept_since: impl FnOnce(SystemTime) -> Option<SystemTime>,
    ) -> Option<SystemTime> {
        let at_tip = page.behind_millis == Some(0) && !page.is_end;
        let tip = page.called.checked_sub(CLOCK_SKEW).filter(|_| at_tip);
        let arrival = page.records.last().and_then(Record::arrival);
        let Some(time) = tip.max(arrival) else {
            let is_unknown = page.is_end && self.time.is_none();
            if is_unknown {
                // The page may come from an error of the service instead. Then the shard continues, and records
                // that are trimmed before its next page must be noticed.
                self.time = kept_since(page.called);
                return self.time;
            }
            return None;
        };
        self.time = self.time.max(Some(time));
        let now = Instant::now();
        let is_due = self.stated.is_none_or(|stated| now - stated >= IDLE_INTERVAL);
        if page.records.is_empty() && !is_due {
            return None;
        }
        self.stated = Some(now);
        self.time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }

    fn arrived(secs: u64) -> Record {
        let record = Record::builder("orders", "shardId-0".into(), 1.into());
        record.arrival(at(secs)).build()
    }

    fn page(called: u64, behind_millis: i64, records: &[Record]) -> Page<'_> {
        Page {
            called: at(called),
            behind_millis: Some(behind_millis),
            is_end: false,
            records,
        }
    }

    fn unknown(_: SystemTime) -> Option<SystemTime> {
        panic!("the time is known")
    }

    #[tokio::test(start_paused = true)]
    async fn page_counts_its_last_arrival_and_the_tip_its_call() {
        let mut read = ReadUntil::default();
        let records = [arrived(80), arrived(90)];
        assert_eq!(read.advance(&page(500, 7, &records), unknown), Some(at(90)));
        assert_eq!(read.advance(&page(500, 0, &records), unknown), Some(at(440)));
        let late = [arrived(200)];
        assert_eq!(read.advance(&page(600, 7, &late), unknown), Some(at(440)));
    }

    #[tokio::test(start_paused = true)]
    async fn idle_shard_states_the_time_once_a_minute() {
        let mut read = ReadUntil::default();
        assert_eq!(read.advance(&page(100, 0, &[]), unknown), Some(at(40)));
        tokio::time::advance(IDLE_INTERVAL / 2).await;
        assert_eq!(read.advance(&page(130, 0, &[]), unknown), None);
        assert_eq!(read.time(), Some(at(70)));
        tokio::time::advance(IDLE_INTERVAL / 2).await;
        assert_eq!(read.advance(&page(160, 0, &[]), unknown), Some(at(100)));
        assert_eq!(read.advance(&page(900, 5, &[]), unknown), None, "not at the tip");
    }

    #[tokio::test(start_paused = true)]
    async fn end_without_a_known_time_is_the_start_of_retention() {
        let last = [arrived(7)];
        let end = |records| Page {
            is_end: true,
            ..page(500, 0, records)
        };
        let mut read = ReadUntil::default();
        assert_eq!(
            read.advance(&end(&[]), |called| Some(called - Duration::from_secs(1))),
            Some(at(499))
        );
        assert_eq!(read.time(), Some(at(499)));
        assert_eq!(read.advance(&end(&last), unknown), Some(at(499)));
        assert_eq!(read.advance(&end(&[]), unknown), None);
    }
}
