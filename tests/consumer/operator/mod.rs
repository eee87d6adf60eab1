//! Operator commands on shards: listing them, skipping records, rewinding, and handing shards over.

mod fleet;
mod owner;
mod rewind;
mod scene;
mod skip;
