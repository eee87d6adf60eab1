//! A runtime for AWS Lambda: runs the same processor behind a Kinesis event source mapping.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! use redrive::{Record, Resilient, dead_letter, lambda, processor_fn};
//!
//! async fn store_order(record: Record) -> Result<(), std::io::Error> {
//!     /* the handler you have */
//!     Ok(())
//! }
//!
//! let orders = Resilient::builder("billing", processor_fn(store_order))
//!     .dead_letters(dead_letter::File::open("/mnt/letters")?) // a sink of yours
//!     .build()?;
//! lambda::run(orders).await
//! # }
//! ```
//!
//! Each invocation runs through the [pipeline](crate::pipeline). Records of different partition keys run
//! concurrently, and aggregated records are unpacked. The answer names the first record that Lambda must send
//! again.
//!
//! # The function does not fail open
//!
//! Lambda reads the failed records in an answer only if the mapping has
//! `FunctionResponseTypes: [ReportBatchItemFailures]`. Without that setting, Lambda treats any answer as
//! success and drops the unsettled records. By default an invocation with an unsettled record therefore
//! returns an **error**, and Lambda sends the whole batch again. If the mapping reports failures, call
//! [`Function::partial_responses`] or set the environment variable [`PARTIAL_RESPONSES`] to `1`.
//!
//! # Settings of the mapping
//!
//! Leave `MaximumRetryAttempts` and `MaximumRecordAgeInSeconds` at −1, their default. redrive bounds the
//! retries of each record itself, and does not dead-letter records because of an outage. With a finite value,
//! Lambda drops whole batches when a dependency is down for long.
//!
//! # Deadlines
//!
//! The last attempt ends one [reserve](Function::reserve) before the invocation's deadline. The reserve is
//! the time for dead letters, idempotency completions and the answer. Records that are still unsettled are
//! returned to the stream. Nothing runs after the answer, and retries never make a function time out.
//!
//! While a breaker is open or the sink is down, the invocation waits until the reserve begins. If it answered
//! at once, Lambda would send the batch again at once, and a mapping with bounded retries would exhaust them.
//!
//! The process remembers unsettled records. The next invocation with such a record resumes its attempts, its
//! hold or its dead letter. If a [batch](crate::BatchProcessor) fails, the search for the failing record
//! starts again in each invocation. On a mapping that does not report failures, one invocation must be long
//! enough for the whole search: about twice log₂ n calls of the processor.
//!
//! # Records that end the process
//!
//! A record that makes the process abort or run out of memory ends every invocation that contains it. With an
//! [idempotency store](crate::idempotency) that outlives the process, redrive makes it a dead letter after
//! five crashes ([`Reason::CrashLoop`](crate::dead_letter::Reason::CrashLoop)). From the third invocation on,
//! one record is processed at a time.
//!
//! # Tumbling windows
//!
//! A mapping with `TumblingWindowInSeconds` passes a state from one invocation to the next; see [`Windowed`].
//!
//! # The dead-letter guard
//!
//! The guard counts across the invocations of one process; Lambda runs several processes. Once the guard has
//! stopped, Lambda sends the batches again until a new version is deployed: one with a fix, or one with
//! another setting of the guard.

mod event;
mod function;
mod response;
mod window;

pub use crate::lambda_event::ParseEventError;
pub use event::Event;
pub use function::{Function, InvocationError, PARTIAL_RESPONSES, run};
pub use response::{ItemFailure, Response};
pub use window::{Fold, Folding, Window, WindowEvent, WindowResponse, Windowed};
