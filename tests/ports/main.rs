//! Tests of checkpoint stores, idempotency stores, replay ledgers and dead-letter sinks, and of replay and
//! rehydration.

mod bucket_sink;
mod checkpoint_stores;
mod dead_letter_sinks;
mod dead_letter_sources;
mod dead_letter_stream;
mod dynamodb;
mod dynamodb_fleet;
mod idempotency_stores;
mod kinesis_sink;
mod payload_stores;
mod queue_sinks;
mod rehydrate;
mod replay;
mod replay_ledgers;
mod sinks_of_sinks;
mod stream_arns;
