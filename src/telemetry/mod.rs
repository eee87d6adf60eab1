//! Metrics, alerts and alarms, as observers of a processor.
//!
//! ```
//! # fn example() -> Result<(), redrive::ConfigError> {
//! use redrive::telemetry::Emf;
//! use redrive::{Record, Resilient, dead_letter, processor_fn};
//!
//! # async fn store_order(_: Record) -> Result<(), std::io::Error> { Ok(()) }
//! let orders = Resilient::builder("billing", processor_fn(store_order))
//!     .dead_letters(dead_letter::Memory::new())
//!     .observer(Emf::new()) // metrics in the log
//!     .build()?;
//! # Ok(())
//! # }
//! ```
//!
//! An observer of this module takes the application's name from the [`Resilient`](crate::Resilient) that it is
//! built into, and reports for that application only. Processors of one application may share it.
//!
//! | observer | feature | for |
//! |---|---|---|
//! | [`Monitor`] | | error rates: sends an alert when a rate is too high, and when it has recovered |
//! | [`Metrics`] | `metrics` | Prometheus, StatsD, OpenTelemetry: any recorder of the `metrics` facade |
//! | [`CloudWatch`] | `cloudwatch` | CloudWatch, through its API: a long-running service |
//! | [`Emf`] | `emf` | AWS Lambda, or any process whose log goes to CloudWatch Logs: no API call, no agent |

pub mod alert;
mod application;
#[cfg(feature = "cloudwatch")]
mod cloudwatch;
#[cfg(feature = "emf")]
mod emf;
#[cfg(any(feature = "cloudwatch", feature = "emf", feature = "metrics"))]
#[cfg_attr(
    not(any(feature = "cloudwatch", feature = "emf")),
    allow(dead_code, reason = "only CloudWatch and Emf read reported values")
)]
mod gauges;
#[cfg_attr(
    not(any(feature = "cloudwatch", feature = "emf", feature = "metrics")),
    allow(dead_code, reason = "no exporter of metrics is compiled in")
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
#[cfg(feature = "emf")]
pub use emf::Emf;
pub use metric::{Kind, Metric, Unit};
pub use monitor::{Monitor, MonitorBuilder};
pub use threshold::{Rate, Threshold};
