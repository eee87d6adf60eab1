//! Conformance suites that every adapter of a port passes.

pub mod idempotency;
pub mod stores;
