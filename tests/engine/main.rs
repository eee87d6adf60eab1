//! Tests of the engine and the pipeline without a server. Time is paused in most tests.

mod allocations;
mod attempts;
mod batches;
mod blocking;
mod classify;
mod idempotency;
mod idempotency_simulation;
mod kpl;
mod pipeline;
mod protection;
mod retry_limit;
mod settling;
mod tower;
mod user_code;
mod workers;
