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
    let settled = |settled| Event::Record {
        record,
        event: RecordEvent::Settled { settled, attempts: 1 },
    };
    let events = [
        settled(Settled::Processed),
        settled(Settled::Duplicate),
        settled(Settled::DeadLettered(letter)),
        Event::Record {
            record,
            event: RecordEvent::Unsettled {
                reason: &Unsettled::Shutdown,
            },
        },
        Event::Record {
            record,
            event: RecordEvent::AttemptEnded {
                records: 1,
                attempt,
                took: delay,
                succeeded: true,
            },
        },
        Event::Record {
            record,
            event: RecordEvent::AttemptFailed {
                records: 1,
                attempt,
                counts: true,
                failure,
                error_type: "",
            },
        },
        Event::Record {
            record,
            event: RecordEvent::RetryScheduled { attempt, delay },
        },
        Event::Record {
            record,
            event: RecordEvent::RetryDelayed { delay },
        },
        Event::Record {
            record,
            event: RecordEvent::Held {
                failure,
                at_most: delay,
            },
        },
        Event::Record {
            record,
            event: RecordEvent::HandlerStuck { attempt },
        },
        Event::Protection(ProtectionEvent::UserCodePanicked {
            code: "classifier",
            count: 1,
        }),
        Event::Protection(ProtectionEvent::BreakerOpened {
            dependency: None,
            failures: 1,
            attempts: 1,
            pause: delay,
        }),
        Event::Record {
            record,
            event: RecordEvent::DeadLetterGuardStopped {
                letters: 1,
                settled: 1,
            },
        },
        Event::DeadLetter(DeadLetterEvent::WriteDelayed {
            sink: "",
            letters: 1,
            failures,
            error,
            delay,
        }),
        Event::Protection(ProtectionEvent::IdempotencyDelayed {
            store: "",
            failures,
            error,
            delay,
        }),
        Event::Record {
            record,
            event: RecordEvent::CompletionLost { error: None },
        },
        Event::Shard {
            stream,
            shard,
            event: ShardEvent::Fetched {
                records: 1,
                bytes: 1,
                behind: Some(delay),
            },
        },
        Event::Shard {
            stream,
            shard,
            event: ShardEvent::FetchFailed {
                failures,
                error,
                delay,
            },
        },
        Event::Shard {
            stream,
            shard,
            event: ShardEvent::FetchThrottled { delay },
        },
        Event::Shard {
            stream,
            shard,
            event: ShardEvent::CheckpointFailed {
                failures,
                error,
                delay,
            },
        },
        Event::Shard {
            stream,
            shard,
            event: ShardEvent::CheckpointUnreadable { error },
        },
        Event::Shard {
            stream: record.stream(),
            shard: record.shard(),
            event: ShardEvent::WindowFull {
                bound: Bound::InFlight,
                oldest: record,
                in_flight: 1,
            },
        },
        Event::Shard {
            stream,
            shard,
            event: ShardEvent::DataLoss {
                from: None,
                to: SystemTime::now(),
                certain: true,
            },
        },
        Event::Record {
            record,
            event: RecordEvent::AggregateOutOfRange {
                records: 1,
                dropped: true,
            },
        },
        Event::Shard {
            stream,
            shard,
            event: ShardEvent::Halted { error },
        },
        Event::Shard {
            stream,
            shard,
            event: ShardEvent::Failed {
                failures,
                error,
                delay,
            },
        },
        Event::Shard {
            stream,
            shard,
            event: ShardEvent::Status {
                in_flight: 1,
                oldest: Some(delay),
                since_progress: delay,
            },
        },
        Event::Shard {
            stream,
            shard,
            event: ShardEvent::LeaseLost,
        },
        Event::Stream {
            stream,
            event: StreamEvent::DiscoveryFailed {
                failures,
                error,
                delay,
            },
        },
        Event::Stream {
            stream,
            event: StreamEvent::HashKeysUncovered { first: 0, last: 1 },
        },
        Event::Fleet {
            stream,
            event: FleetEvent::LeaseExpired { shard, owner: "a" },
        },
        Event::Fleet {
            stream,
            event: FleetEvent::HandOverForced { shard, from: "a" },
        },
        Event::Fleet {
            stream,
            event: FleetEvent::LeaderGained { worker: "a" },
        },
        Event::Fleet {
            stream,
            event: FleetEvent::Failed {
                task: "",
                failures,
                error,
                delay,
            },
        },
        Event::Record {
            record,
            event: RecordEvent::Expiring {
                age: delay,
                left: delay,
            },
        },
        Event::Shard {
            stream,
            shard,
            event: ShardEvent::CrashLoopSuspected { starts: 3 },
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
