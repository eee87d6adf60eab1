//! Tests of the pipeline of one shard, from the batches to the checkpoint.

mod expiring;
mod letters_waiting;
mod progress;
mod reading;
mod running;
