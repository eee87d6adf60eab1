//! Tests of the pipeline of one shard, from the batches to the checkpoint.

mod checkpoints;
mod expiring;
mod letters_waiting;
mod reading;
mod running;
