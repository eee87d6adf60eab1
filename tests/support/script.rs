//! A handler that follows the steps in each record's payload and records every call.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redrive::processor::Attempt;
use redrive::{BoxError, Failure, Record, RecordProcessor, Scope, SequenceNumber};
use tokio_util::sync::CancellationToken;

/// Follows payloads that are lists of steps, one per attempt, such as `fail,fail,ok`. The last step is
/// repeated.
///
/// The steps are: `ok`, `fail` (transient, of unknown cause), `own` (transient, the record's own fault),
/// `bad` (permanent), `panic`, `hang`, `sleep:<ms>` (then succeeds), `slowfail:<ms>` and `slowbad:<ms>` (then
/// fails like `fail` or `bad`), `after:<ms>` (fails and requests that delay), and `gate` (succeeds once the
/// gate is open).
#[derive(Debug, Clone, Default)]
pub struct Script {
    calls: Arc<Mutex<Vec<Call>>>,
    done: Arc<Mutex<BTreeSet<SequenceNumber>>>,
    gate: CancellationToken,
}

/// One call of the handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub key: Option<String>,
    pub sequence_number: SequenceNumber,
    pub attempt: u32,
    pub at: tokio::time::Instant,
}

impl Script {
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().expect("no panic while locked").clone()
    }

    /// Returns the records that succeeded: what a database would contain.
    pub fn done(&self) -> BTreeSet<SequenceNumber> {
        self.done.lock().expect("no panic while locked").clone()
    }

    /// Opens the gate permanently.
    pub fn open_gate(&self) {
        self.gate.cancel();
    }

    /// Returns the sequence numbers in the order of their first calls.
    pub fn first_calls(&self) -> Vec<u64> {
        let calls = self.calls();
        let first = calls.iter().filter(|call| call.attempt == 1);
        first
            .map(|call| call.sequence_number.as_str().parse().expect("a small number"))
            .collect()
    }
}

impl RecordProcessor for Script {
    type Error = BoxError;

    async fn process(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), BoxError> {
        self.calls.lock().expect("no panic while locked").push(Call {
            key: record.partition_key().map(str::to_owned),
            sequence_number: record.sequence_number().clone(),
            attempt: attempt.number(),
            at: tokio::time::Instant::now(),
        });
        let steps = std::str::from_utf8(record.payload())?;
        let steps: Vec<&str> = steps.split(',').collect();
        let step = steps[(attempt.number() as usize).min(steps.len()) - 1];
        let (name, millis) = step.split_once(':').unwrap_or((step, "0"));
        let time = Duration::from_millis(millis.parse()?);
        let result = match name {
            "ok" | "" => Ok(()),
            "fail" => Err("a failure of unknown cause".into()),
            "own" => Err(Failure::transient("a failure of its own")
                .with_scope(Scope::Record)
                .into()),
            "bad" => Err(Failure::permanent("bad data").into()),
            "panic" => panic!("scripted"),
            "hang" => std::future::pending().await,
            "sleep" => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            "gate" => {
                self.gate.cancelled().await;
                Ok(())
            }
            "slowfail" => {
                tokio::time::sleep(time).await;
                Err("slow, and failed".into())
            }
            "slowbad" => {
                tokio::time::sleep(time).await;
                Err(Failure::permanent("slow, and bad").into())
            }
            "after" => Err(Failure::transient("busy").with_retry_after(time).into()),
            other => Err(Failure::permanent(format!("no such step: {other}")).into()),
        };
        if result.is_ok() {
            let mut done = self.done.lock().expect("no panic while locked");
            done.insert(record.sequence_number().clone());
        }
        result
    }
}

/// Creates a record of stream `orders`, shard `shardId-0`.
pub fn record(number: u64, key: &str, script: &str) -> Record {
    Record::builder("orders", "shardId-0".into(), number.into())
        .partition_key(key)
        .payload(script.to_owned())
        .build()
}
