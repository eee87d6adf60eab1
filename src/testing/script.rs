//! A processor that follows the steps in each record's payload.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::failure::{BoxError, Failure, Scope};
use crate::processor::{Attempt, RecordProcessor};
use crate::record::{Record, SequenceNumber};

/// A processor that takes its behaviour from the payload, and records every call. Clones share the calls.
///
/// A payload is a list of steps, one for each attempt, such as `fail,fail,ok`. The last step is repeated.
///
/// | step | the attempt |
/// |---|---|
/// | `ok`, or nothing | succeeds |
/// | `fail` | fails: transient, of unknown cause |
/// | `own` | fails: transient, the record's own fault |
/// | `bad`, or an unknown step | fails: permanent, bad data |
/// | `after:<ms>` | fails, and requests this delay before the next attempt |
/// | `sleep:<ms>` | succeeds after this time |
/// | `slowfail:<ms>`, `slowbad:<ms>` | fails like `fail` or `bad` after this time |
/// | `gate` | succeeds once [`open_gate`](Script::open_gate) is called |
/// | `hang` | never ends |
/// | `panic` | panics |
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use redrive::testing::Script;
/// use redrive::{Record, Resilient, Settled, dead_letter};
///
/// let script = Script::new();
/// let orders = Resilient::builder("billing", script.clone())
///     .dead_letters(dead_letter::Memory::new())
///     .build()?;
/// let record = Record::builder("orders", "shardId-000000000000".into(), 1.into())
///     .payload("fail,fail,ok")
///     .build();
/// assert_eq!(orders.settle(&record).await?, Settled::Processed);
/// assert_eq!(script.calls().len(), 3);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Script {
    calls: Arc<Mutex<Vec<Call>>>,
    done: Arc<Mutex<BTreeSet<SequenceNumber>>>,
    gate: CancellationToken,
}

/// A call of a [`Script`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Call {
    /// The record's partition key.
    pub key: Option<String>,
    /// The record's sequence number.
    pub sequence_number: SequenceNumber,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The time of the call.
    pub at: Instant,
}

impl Script {
    /// Creates a processor with a closed gate.
    pub fn new() -> Self {
        Script::default()
    }

    /// Returns the calls, in their order.
    pub fn calls(&self) -> Vec<Call> {
        locked(&self.calls).clone()
    }

    /// Returns the records that succeeded: what a database would contain.
    pub fn done(&self) -> BTreeSet<SequenceNumber> {
        locked(&self.done).clone()
    }

    /// Opens the gate permanently.
    pub fn open_gate(&self) {
        self.gate.cancel();
    }
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RecordProcessor for Script {
    type Error = BoxError;

    async fn process(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), BoxError> {
        locked(&self.calls).push(Call {
            key: record.partition_key().map(str::to_owned),
            sequence_number: record.sequence_number().clone(),
            attempt: attempt.number(),
            at: Instant::now(),
        });
        let steps = std::str::from_utf8(record.payload())?;
        let number = usize::try_from(attempt.number()).unwrap_or(usize::MAX);
        let step = steps.split(',').take(number).last().unwrap_or_default();
        let (name, millis) = step.split_once(':').unwrap_or((step, "0"));
        let time = Duration::from_millis(millis.parse()?);
        match name {
            "ok" | "" => {}
            "fail" => return Err("a failure of unknown cause".into()),
            "own" => {
                let failure = Failure::transient("a failure of its own");
                return Err(failure.with_scope(Scope::Record).into());
            }
            "bad" => return Err(Failure::permanent("bad data").into()),
            "after" => return Err(Failure::transient("busy").with_retry_after(time).into()),
            "sleep" => sleep(time).await,
            "slowfail" => {
                sleep(time).await;
                return Err("slow, and failed".into());
            }
            "slowbad" => {
                sleep(time).await;
                return Err(Failure::permanent("slow, and bad").into());
            }
            "gate" => self.gate.cancelled().await,
            "hang" => std::future::pending().await,
            "panic" => panic!("scripted"),
            other => return Err(Failure::permanent(format!("no such step: {other}")).into()),
        }
        locked(&self.done).insert(record.sequence_number().clone());
        Ok(())
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script")
            .field("calls", &locked(&self.calls).len())
            .finish_non_exhaustive()
    }
}
