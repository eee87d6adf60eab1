//! What can be measured, and where it goes.
//!
//! ```
//! # fn example() -> Result<(), redrive::ConfigError> {
//! use redrive::telemetry::Emf;
//! use redrive::{Record, Resilient, dead_letter, processor_fn};
//!
//! # async fn store_order(_: Record) -> Result<(), std::io::Error> { Ok(()) }
//! let orders = Resilient::builder("billing", processor_fn(store_order))
//!     .dead_letters(dead_letter::Memory::new())
//!     .observer(Emf::new("billing")) // metrics in the log
//!     .build()?;
//! # Ok(())
//! # }
//! ```
//!
//! | observer | feature | for |
//! |---|---|---|
//! | [`Metrics`] | `metrics` | Prometheus, StatsD, OpenTelemetry: whatever the `metrics` facade records to |
//! | [`Emf`] | `emf` | AWS Lambda, or whatever sends its log to CloudWatch Logs: no call, no agent |

#[cfg(feature = "emf")]
mod emf;
mod metric;
#[cfg(feature = "metrics")]
mod metrics;

#[cfg(feature = "metrics")]
pub use self::metrics::Metrics;
#[cfg(feature = "emf")]
pub use emf::Emf;
pub use metric::{Kind, Metric, Unit};
