//! One shard's records, from the batches that are read to the checkpoint.

mod expiring;
mod letters_waiting;
mod progress;
mod reading;
mod running;
