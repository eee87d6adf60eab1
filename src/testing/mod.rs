//! Tools for your own tests: conformance suites for adapters, a scripted processor, and an in-process Kinesis
//! server.
//!
//! # Test an adapter
//!
//! Every adapter of a port passes the same suite: those of redrive, and yours. A suite checks the promises
//! that the documentation of the port's trait makes.
//!
//! | port | suite | macro |
//! |---|---|---|
//! | [`DeadLetterSink`](crate::dead_letter::DeadLetterSink) | [`sinks`] | [`sink_conformance!`](crate::sink_conformance) |
//! | [`PayloadStore`](crate::dead_letter::PayloadStore) | [`payloads`] | [`payload_store_conformance!`](crate::payload_store_conformance) |
//! | [`DeadLetterSource`](crate::replay::DeadLetterSource) | [`sources`] | [`source_conformance!`](crate::source_conformance) |
//! | [`CheckpointStore`](crate::checkpoint::CheckpointStore) | [`checkpoints`] | [`checkpoint_conformance!`](crate::checkpoint_conformance) |
//! | [`Leases`](crate::checkpoint::Leases) | [`leases`] | [`lease_conformance!`](crate::lease_conformance) |
//! | [`Sharing`](crate::checkpoint::Sharing) | [`sharing`] | [`sharing_conformance!`](crate::sharing_conformance) |
//! | [`IdempotencyStore`](crate::idempotency::IdempotencyStore) | [`idempotency`] | [`idempotency_conformance!`](crate::idempotency_conformance) |
//! | [`Ledger`](crate::replay::Ledger) | [`ledgers`] | [`ledger_conformance!`](crate::ledger_conformance) |
//!
//! A suite reaches the adapter through a small trait, `Harness`. The macro generates a test for each check,
//! and each test gets a harness of its own. A dead-letter sink:
//!
//! ```no_run
//! # mod mine {
//! # use redrive::dead_letter::{DeadLetter, Memory};
//! use redrive::testing::sinks::Harness;
//!
//! /// Your sink, with an empty target.
//! struct Mine(Memory);
//!
//! impl Harness for Mine {
//!     type Sink = Memory;
//!
//!     fn sink(&self) -> &Memory {
//!         &self.0
//!     }
//!
//!     async fn read_back(&self, _is_complete: impl Fn(&[DeadLetter]) -> bool) -> Vec<DeadLetter> {
//!         self.0.letters()
//!     }
//! }
//!
//! redrive::sink_conformance!(mine, async { Mine(Memory::new()) });
//! # }
//! ```
//!
//! A source of dead letters:
//!
//! ```no_run
//! # mod mine {
//! # use redrive::dead_letter::{DeadLetter, DeadLetterSink, File};
//! # use redrive::replay::source;
//! # use redrive::testing::sinks::confirmed;
//! use redrive::testing::sources::Harness;
//!
//! /// The folder that your source reads.
//! struct Mine(tempfile::TempDir);
//!
//! impl Harness for Mine {
//!     type Source = source::File;
//!
//!     async fn write(&self, letters: &[DeadLetter]) {
//!         let sink = File::open(self.0.path().join("letters.jsonl")).expect("the file opens");
//!         confirmed(sink.put(letters).await);
//!     }
//!
//!     async fn open(&self) -> source::File {
//!         source::File::new(self.0.path().join("letters.jsonl"))
//!     }
//! }
//!
//! redrive::source_conformance!(mine, async {
//!     let mine = Mine(tempfile::tempdir().expect("a folder"));
//!     mine.write(&[]).await; // creates the file
//!     mine
//! });
//! # }
//! ```
//!
//! A checkpoint store. A store with leases, and one that shares them, passes each suite with the same harness:
//!
//! ```no_run
//! # #[cfg(feature = "dynamodb")]
//! # mod mine {
//! # use std::time::Duration;
//! # use redrive::checkpoint::DynamoDb;
//! # fn new_table() -> Mine { unimplemented!() }
//! use redrive::testing::checkpoints::Harness;
//!
//! /// A table that belongs to one test.
//! struct Mine {
//!     client: aws_sdk_dynamodb::Client,
//!     table: String,
//! }
//!
//! impl Harness for Mine {
//!     type Store = DynamoDb;
//!
//!     async fn open(&self) -> DynamoDb {
//!         let store = DynamoDb::new(self.client.clone(), self.table.as_str());
//!         store.failover_time(Duration::from_millis(300))
//!     }
//!
//!     fn serves_one_stream(&self) -> bool {
//!         true
//!     }
//! }
//!
//! redrive::checkpoint_conformance!(mine, async { new_table() });
//! redrive::lease_conformance!(my_leases, async { new_table() });
//! redrive::sharing_conformance!(my_fleet, async { new_table() });
//! # }
//! ```
//!
//! An idempotency store:
//!
//! ```no_run
//! # mod mine {
//! # use redrive::idempotency::Memory;
//! use redrive::testing::idempotency::Harness;
//!
//! /// Your store's storage, which is empty.
//! struct Mine(Memory);
//!
//! impl Harness for Mine {
//!     type Store = Memory;
//!
//!     async fn open(&self) -> Memory {
//!         self.0.clone()
//!     }
//!
//!     fn survives_restart(&self) -> bool {
//!         false // this one is in memory
//!     }
//! }
//!
//! redrive::idempotency_conformance!(mine, async { Mine(Memory::new()) });
//! # }
//! ```
//!
//! A replay ledger. `optional` skips the tests where the database is missing:
//!
//! ```no_run
//! # mod mine {
//! # use redrive::replay::ledger::Memory;
//! use redrive::testing::ledgers::Harness;
//!
//! /// Your ledger's storage, which is empty.
//! struct Mine(Memory);
//!
//! impl Harness for Mine {
//!     type Ledger = Memory;
//!
//!     async fn open(&self) -> Memory {
//!         self.0.clone()
//!     }
//!
//!     fn survives_restart(&self) -> bool {
//!         false
//!     }
//! }
//!
//! redrive::ledger_conformance!(mine, optional async {
//!     std::env::var("MY_DATABASE").ok().map(|_| Mine(Memory::new()))
//! });
//! # }
//! ```
//!
//! # Test your processor
//!
//! Call the processor itself in a unit test, and the engine around the processor with
//! [`Resilient::settle`](crate::Resilient::settle). [`Record::builder`](crate::Record::builder) makes a
//! record. With tokio's paused clock (`start_paused = true`) the backoff takes no time.
//! The section "Test your processor" of `docs/guide.md` has an example.
//!
//! - [`Script`] stands in for a processor whose failures a test chooses, for example to test your settings.
//! - [`dead_letter::Memory`](crate::dead_letter::Memory), [`checkpoint::Memory`](crate::checkpoint::Memory)
//!   and [`idempotency::Memory`](crate::idempotency::Memory) stand in for services.
//! - [`kinesis`] serves a whole consumer over HTTP.

pub mod checkpoints;
pub mod idempotency;
pub mod kinesis;
pub mod leases;
pub mod ledgers;
pub mod payloads;
mod script;
pub mod sharing;
pub mod sinks;
pub mod sources;

#[cfg(test)]
mod tests;

pub use script::{Call, Script};

/// Generates a module with a test for each check of a suite.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_tests {
    ($suite:ident, $name:ident, $checks:tt, optional $fresh:expr) => {
        $crate::conformance_tests!(@each $suite, $name, $checks, {
            let Some(harness) = $fresh.await else { return };
            harness
        });
    };
    ($suite:ident, $name:ident, $checks:tt, $fresh:expr) => {
        $crate::conformance_tests!(@each $suite, $name, $checks, { $fresh.await });
    };
    (@each $suite:ident, $name:ident, [$($check:ident),* $(,)?], $make:block) => {
        mod $name {
            use super::*;
            $(
                #[tokio::test]
                async fn $check() {
                    let harness = $make;
                    $crate::testing::$suite::$check(&harness).await;
                }
            )*
        }
    };
}
