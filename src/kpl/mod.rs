//! Records inside records, as the Kinesis Producer Library (KPL) aggregates them.
//!
//! A redrive consumer opens aggregated records itself. The processor receives the records that were put, each
//! with its own partition key and a [sub-sequence number](crate::Record::sub_sequence_number). Use this
//! module to open records that were read by other means, or to put aggregated records.
//!
//! ```
//! use redrive::Record;
//! use redrive::kpl::{Aggregator, Deaggregator, Expanded};
//!
//! let mut aggregator = Aggregator::new(50 * 1024);
//! aggregator.add("customer-1", None, "first")?;
//! aggregator.add("customer-2", None, "second")?;
//! let put = aggregator.finish().expect("there are records in it");
//!
//! let record = Record::builder("orders", "shardId-000000000000".into(), 1.into())
//!     .partition_key(put.partition_key)
//!     .payload(put.data)
//!     .build();
//! let mut records = Vec::new();
//! let expanded = Deaggregator::new().expand(record, &mut records);
//! assert!(matches!(expanded, Expanded::Aggregate { records: 2, .. }));
//! assert_eq!(records[1].partition_key(), Some("customer-2"));
//! assert_eq!(records[1].sub_sequence_number(), 1);
//! # Ok::<(), redrive::kpl::AggregateFull>(())
//! ```

mod aggregator;
mod deaggregator;
mod fields;
mod packed;
mod stamp;
mod wire;

pub use aggregator::{AggregateFull, Aggregated, Aggregator};
pub use deaggregator::{DamagedAggregate, Deaggregator, Expanded, OutOfRangePolicy};
pub(crate) use packed::Unpacking;

#[cfg(any(feature = "kinesis", feature = "lambda"))]
pub(crate) mod expand;
#[cfg(test)]
mod tests;
