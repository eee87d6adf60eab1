//! What an operator does to shards by hand: list them, skip records, go back.

mod owner;
mod rewind;
mod scene;
mod skip;
