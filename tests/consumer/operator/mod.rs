//! Operator commands on shards: listing them, skipping records and rewinding.

mod owner;
mod rewind;
mod scene;
mod skip;
