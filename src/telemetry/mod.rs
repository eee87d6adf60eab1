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
//! | [`Monitor`] | | error rates: tells somebody when one is too high, and when it is no longer |
//! | [`Metrics`] | `metrics` | Prometheus, StatsD, OpenTelemetry: whatever the `metrics` facade records to |
//! | [`CloudWatch`] | `cloudwatch` | CloudWatch, by its API: a long-running service |
//! | [`Emf`] | `emf` | AWS Lambda, or whatever sends its log to CloudWatch Logs: no call, no agent |

mod alarms;
pub mod alert;
#[cfg(feature = "cloudwatch")]
mod cloudwatch;
#[cfg(feature = "emf")]
mod emf;
#[cfg(any(feature = "cloudwatch", feature = "emf", feature = "metrics"))]
#[cfg_attr(
    not(any(feature = "cloudwatch", feature = "emf")),
    allow(dead_code, reason = "the facade's gauges keep what they were told")
)]
mod gauges;
#[cfg_attr(
    not(any(feature = "cloudwatch", feature = "emf", feature = "metrics")),
    allow(dead_code, reason = "nobody measures")
)]
mod metric;
#[cfg(feature = "metrics")]
mod metrics;
mod monitor;
mod threshold;

#[cfg(feature = "cloudwatch")]
pub use self::cloudwatch::CloudWatch;
#[cfg(feature = "metrics")]
pub use self::metrics::Metrics;
pub use alarms::{Alarm, Alarms, LooksAt};
#[cfg(feature = "emf")]
pub use emf::Emf;
pub use metric::{Kind, Metric, Unit};
pub use monitor::{Monitor, MonitorBuilder};
pub use threshold::{Rate, Threshold};
