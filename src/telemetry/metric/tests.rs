//! Checks that every metric is derived from at least one event.

use std::collections::HashSet;
use std::io;
use std::time::SystemTime;

use super::*;
use crate::failure::Failure;
use crate::observer::{Bound, Redacted};
use crate::record::DeadLetterId;
use crate::record::Record;
use crate::settlement::Unsettled;
use crate::telemetry::gauges::Standing;

#[test]
fn every_metric_is_of_some_event() {
    let record = &Record::builder("orders", "shardId-0".into(), 1.into())
        .arrival(SystemTime::now())
        .build();
    let (stream, shard) = (record.stream(), record.shard());
    let error = &io::Error::other("refused");
    let failure = Redacted(&Failure::permanent("bad data"));
    let (delay, failures, attempt) = (Duration::from_secs(1), 1, 1);
    let letter = DeadLetterId::new([7; 32]);
    let settled = |settled| Event::Settled {
        record,
        settled,
        attempts: 1,
    };
    let events = [
        settled(Settled::Processed),
        settled(Settled::Duplicate),
        settled(Settled::DeadLettered(letter)),
        Event::Unsettled {
            record,
            reason: &Unsettled::Shutdown,
        },
        Event::AttemptEnded {
            record,
            records: 1,
            attempt,
            took: delay,
            succeeded: true,
        },
        Event::AttemptFailed {
            record,
            records: 1,
            attempt,
            counts: true,
            failure,
            error_type: "",
        },
        Event::RetryScheduled {
            record,
            attempt,
            delay,
        },
        Event::RetryDelayed { record, delay },
        Event::RecordHeld {
            record,
            failure,
            at_most: delay,
        },
        Event::HandlerStuck { record, attempt },
        Event::UserCodePanicked {
            code: "classifier",
            count: 1,
        },
        Event::BreakerOpened {
            dependency: None,
            failures: 1,
            attempts: 1,
            pause: delay,
        },
        Event::DeadLetterGuardStopped {
            record,
            letters: 1,
            settled: 1,
        },
        Event::DeadLetterDelayed {
            sink: "",
            letters: 1,
            failures,
            error,
            delay,
        },
        Event::IdempotencyDelayed {
            store: "",
            failures,
            error,
            delay,
        },
        Event::CompletionLost { record, error: None },
        Event::Fetched {
            stream,
            shard,
            records: 1,
            bytes: 1,
            behind: Some(delay),
        },
        Event::FetchFailed {
            stream,
            shard,
            failures,
            error,
            delay,
        },
        Event::FetchThrottled { stream, shard, delay },
        Event::CheckpointFailed {
            stream,
            shard,
            failures,
            error,
            delay,
        },
        Event::CheckpointUnreadable { stream, shard, error },
        Event::WindowFull {
            bound: Bound::InFlight,
            oldest: record,
            in_flight: 1,
        },
        Event::DataLoss {
            stream,
            shard,
            from: None,
            to: SystemTime::now(),
            certain: true,
        },
        Event::AggregateOutOfRange {
            record,
            records: 1,
            dropped: true,
        },
        Event::ShardHalted { stream, shard, error },
        Event::ShardFailed {
            stream,
            shard,
            failures,
            error,
            delay,
        },
        Event::ShardStatus {
            stream,
            shard,
            in_flight: 1,
            oldest: Some(delay),
            since_progress: delay,
        },
        Event::LeaseLost { stream, shard },
        Event::DiscoveryFailed {
            stream,
            failures,
            error,
            delay,
        },
        Event::HashKeysUncovered {
            stream,
            first: 0,
            last: 1,
        },
        Event::RecordExpiring {
            record,
            age: delay,
            left: delay,
        },
        Event::CrashLoopSuspected {
            stream,
            shard,
            starts: 3,
        },
    ];
    let mut standing = Standing::default();
    let mut measured = HashSet::new();
    for event in &events {
        measure(event, |metric, value| {
            assert!(value > 0.0, "{metric:?}");
            measured.insert(metric);
        });
        standing.hear(event);
        measured.extend(standing.tell(event.stream()).map(|(metric, _)| metric));
    }
    let missing: Vec<_> = Metric::ALL
        .iter()
        .filter(|metric| !measured.contains(metric))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}
