//! Which alarms there should be.

use std::time::Duration;

use super::{Alarm, Alarms, LooksAt};
use crate::telemetry::Metric;

const MINUTE: Duration = Duration::from_secs(60);

impl Alarms {
    /// Wherever it runs.
    pub(super) fn common(&self) -> Vec<Alarm> {
        vec![
            Alarm {
                looks_at: LooksAt::Expression {
                    expression: "IF(m0 + m1 >= 50, 100 * m0 / (m0 + m1), 0)",
                    metrics: vec![(Metric::AttemptsFailed, "Sum"), (Metric::RecordsProcessed, "Sum")],
                },
                above: 20.0,
                of_periods: 5,
                must_be_above: 3,
                ..Alarm::new(
                    "ErrorRate",
                    "More than a fifth of all attempts fail. Look at the codes of the failures in the log: a dependency, or a deploy.",
                )
            },
            Alarm {
                looks_at: of_stream(Metric::RecordsDeadLettered, "Sum"),
                period: 5 * MINUTE,
                ..Alarm::new(
                    "DeadLetters",
                    "Records were given up. `redrive stats` says why; mend the cause, then `redrive replay`.",
                )
            },
            Alarm {
                looks_at: of_application(Metric::BreakersOpen, "Maximum"),
                of_periods: 5,
                must_be_above: 5,
                ..Alarm::new(
                    "BreakerOpen",
                    "For five minutes a dependency has failed so often that nothing is tried but a few probes. Nothing is lost: it goes on by itself once they succeed.",
                )
            },
            Alarm {
                looks_at: of_application(Metric::LetterFailures, "Sum"),
                of_periods: 3,
                must_be_above: 3,
                ..Alarm::new(
                    "SinkDown",
                    "The dead-letter sink takes no letters. Shards whose next record is to be one wait.",
                )
            },
            Alarm {
                looks_at: of_stream(Metric::ShardsStopped, "Maximum"),
                ..Alarm::new(
                    "GuardStopped",
                    "Most records would become dead letters: a shard has stopped before the next one. Mend the cause and start again, or resume the guard.",
                )
            },
        ]
    }

    /// Of a consumer that reads by itself.
    pub(super) fn of_service(&self) -> Vec<Alarm> {
        vec![
            Alarm {
                looks_at: of_stream(Metric::OldestUnsettledAge, "Maximum"),
                above: self.share_of_retention(0.25),
                of_periods: 5,
                must_be_above: 5,
                missing_is_bad: true,
                ..Alarm::new(
                    "OldestUnsettled",
                    "A record has waited for a quarter of the stream's retention, or no consumer runs. Kinesis drops what is older than the retention: raise it if this takes long to mend.",
                )
            },
            Alarm {
                looks_at: of_stream(Metric::BehindLatest, "Maximum"),
                above: self.share_of_retention(0.5),
                of_periods: 5,
                must_be_above: 5,
                missing_is_bad: true,
                ..Alarm::new(
                    "IteratorAge",
                    "The reading is behind by half of the stream's retention, or nothing is read. Raise the retention, then the concurrency or the shards.",
                )
            },
            Alarm {
                looks_at: LooksAt::Expression {
                    expression: "IF(m0 > 0 AND m1 + m2 + m3 == 0, 1, 0)",
                    metrics: vec![
                        (Metric::RecordsInFlight, "Maximum"),
                        (Metric::RecordsProcessed, "Sum"),
                        (Metric::RecordsDuplicate, "Sum"),
                        (Metric::RecordsDeadLettered, "Sum"),
                    ],
                },
                of_periods: 10,
                must_be_above: 10,
                missing_is_bad: true,
                ..Alarm::new(
                    "NoProgress",
                    "Records are there and none was settled for ten minutes, or no consumer runs. Its health report says what it waits for.",
                )
            },
            Alarm {
                looks_at: of_stream(Metric::ShardsHalted, "Sum"),
                period: 5 * MINUTE,
                ..Alarm::new(
                    "ShardHalted",
                    "A shard cannot go on without losing a record; the log says why. Mend it and start again, or `redrive shards skip`.",
                )
            },
            Alarm {
                looks_at: of_stream(Metric::DataLosses, "Sum"),
                period: 5 * MINUTE,
                ..Alarm::new(
                    "DataLoss",
                    "The stream has dropped records before they were settled, or may have. The log says from when to when.",
                )
            },
        ]
    }

    /// Of a function, for which Lambda reads the stream.
    pub(super) fn of_function(&self, function: &str) -> Vec<Alarm> {
        let of_function = |metric, statistic| LooksAt::Service {
            namespace: "AWS/Lambda",
            metric,
            statistic,
            dimension: ("FunctionName", function.to_owned()),
        };
        vec![
            // Where no record comes none is old.
            Alarm {
                looks_at: of_function("IteratorAge", "Maximum"),
                above: self.share_of_retention(0.25),
                of_periods: 5,
                must_be_above: 5,
                ..Alarm::new(
                    "IteratorAge",
                    "The function is given records that are a quarter of the stream's retention old. Kinesis drops what is older than the retention: raise it if this takes long to mend.",
                )
            },
            // The mapping polls also where nothing comes.
            Alarm {
                looks_at: LooksAt::Service {
                    namespace: "AWS/Kinesis",
                    metric: "GetRecords.IteratorAgeMilliseconds",
                    statistic: "Maximum",
                    dimension: ("StreamName", self.stream.clone()),
                },
                above: self.share_of_retention(0.5),
                of_periods: 5,
                must_be_above: 5,
                missing_is_bad: true,
                ..Alarm::new(
                    "StreamNotRead",
                    "Nobody polls the stream, or whoever does is behind by half of its retention. Is the event source mapping enabled?",
                )
            },
            Alarm {
                looks_at: of_function("Errors", "Sum"),
                of_periods: 5,
                must_be_above: 3,
                ..Alarm::new(
                    "FunctionErrors",
                    "Invocations fail, run into their timeout or die: their batches are delivered again, and what is behind them in the shard waits.",
                )
            },
            Alarm {
                looks_at: of_stream(Metric::RecordsUnsettled, "Sum"),
                of_periods: 10,
                must_be_above: 10,
                ..Alarm::new(
                    "Unsettled",
                    "For ten minutes records were given back, to be delivered again: a breaker is open, the dead-letter sink or the idempotency store is down, or there is not enough time.",
                )
            },
        ]
    }

    fn share_of_retention(&self, share: f64) -> f64 {
        self.retention.mul_f64(share).as_secs_f64() * 1_000.0
    }
}

/// Wherever its letters go into a queue.
pub(super) fn of_queue(queue: &str) -> Alarm {
    Alarm {
        looks_at: LooksAt::Service {
            namespace: "AWS/SQS",
            metric: "ApproximateAgeOfOldestMessage",
            statistic: "Maximum",
            dimension: ("QueueName", queue.to_owned()),
        },
        above: Duration::from_secs(2 * 24 * 60 * 60).as_secs_f64(),
        period: 5 * MINUTE,
        ..Alarm::new(
            "OldestLetter",
            "A dead letter has lain for two days; the queue drops it once it is as old as its retention. `redrive stats`, then `redrive replay`.",
        )
    }
}

const fn of_stream(metric: Metric, statistic: &'static str) -> LooksAt {
    LooksAt::Metric {
        metric,
        statistic,
        of_stream: true,
    }
}

const fn of_application(metric: Metric, statistic: &'static str) -> LooksAt {
    LooksAt::Metric {
        metric,
        statistic,
        of_stream: false,
    }
}

impl Alarm {
    /// Raised by the first that there is within a minute.
    fn new(name: &'static str, description: &str) -> Self {
        Alarm {
            name,
            description: description.to_owned(),
            looks_at: of_stream(Metric::RecordsProcessed, "Sum"),
            above: 0.0,
            period: MINUTE,
            of_periods: 1,
            must_be_above: 1,
            missing_is_bad: false,
        }
    }
}
