//! Tools for your own tests: an in-process Kinesis server ([`kinesis`]), and the conformance suites that
//! redrive's own sinks ([`sinks`]) and payload stores ([`payloads`]) pass.
//!
//! Run the suite of sinks with your own sink like this:
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

pub mod kinesis;
pub mod payloads;
pub mod sinks;
