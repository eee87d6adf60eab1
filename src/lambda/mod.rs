//! The same processor in AWS Lambda, on a Kinesis event source mapping.
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
//! Each invocation goes through the [pipeline](crate::pipeline): records of different partition keys run beside each
//! other, aggregated records are taken apart, and the answer says from where on the batch must come again.
//!
//! # It does not fail open
//!
//! Lambda heeds an answer that names failed records only if the mapping has
//! `FunctionResponseTypes: [ReportBatchItemFailures]`; without it, it takes any answer for success, and drops what was
//! not settled. So an invocation with an unsettled record ends in an **error**, upon which Lambda sends the whole batch
//! again, until you say that the mapping reports failures: [`Function::partial_responses`], or the environment variable
//! [`PARTIAL_RESPONSES`] set to `1`.
//!
//! # What the mapping must leave to redrive
//!
//! `MaximumRetryAttempts` and `MaximumRecordAgeInSeconds` at −1, their default: redrive bounds retries itself, record by
//! record, and sends none to its dead-letter sink for an outage's sake. A finite value drops whole batches when a
//! dependency is down for long.
//!
//! # Deadlines
//!
//! What is not settled a moment before the invocation's deadline is given back; that moment, the
//! [reserve](Function::reserve), is for letters, completions and the answer. Nothing runs once the answer is given, and
//! no function times out because of retries. While a breaker is open or the sink is down the invocation waits that
//! long: an answer at once would only come back at once, and use up the attempts of a mapping that bounds them.
//!
//! What was begun with a record is not forgotten by the process: the next invocation with it goes on with its attempts,
//! its hold, or its letter. Where a [batch](crate::BatchProcessor) fails, the one that it fails for is looked for anew;
//! on a mapping that does not report failures the function needs the time to find it, about twice log₂ n calls of the
//! handler.
//!
//! # A record that ends the process
//!
//! A record with which the process aborts or runs out of memory ends every invocation that has it. With an
//! [idempotency store](crate::idempotency) that outlives the process it becomes a dead letter after five
//! ([`Reason::CrashLoop`](crate::dead_letter::Reason::CrashLoop)); from the third on one record is processed at a time.
//!
//! # Tumbling windows
//!
//! A mapping with `TumblingWindowInSeconds` hands a state from one invocation to the next: [`Windowed`].
//!
//! # The dead-letter guard
//!
//! It counts across the invocations of a process, of which Lambda runs several. When it has stopped, batches come again
//! and again until a new version is deployed: the mended one, or one with the guard set otherwise.

mod event;
mod function;
mod response;
mod window;

pub use crate::lambda_event::InvalidEvent;
pub use event::Event;
pub use function::{Function, InvocationError, PARTIAL_RESPONSES, run};
pub use response::{ItemFailure, Response};
pub use window::{Fold, Folding, Window, WindowEvent, WindowResponse, Windowed};
