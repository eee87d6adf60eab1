//! Checkpoint stores, idempotency stores, ledgers and dead-letter sinks, and what is built on dead letters: replay and
//! rehydration.

mod bucket_sink;
mod checkpoint_stores;
mod conformance;
mod dead_letter_sinks;
mod dead_letter_stream;
mod dynamodb;
mod idempotency_stores;
mod kinesis_sink;
mod queue_sinks;
mod rehydrate;
mod replay;
mod replay_ledgers;
mod sinks_of_sinks;
