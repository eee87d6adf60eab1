//! What every adapter of a port must do.

pub mod idempotency;
pub mod stores;
