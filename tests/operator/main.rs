//! What an operator does to shards by hand: list them, skip records, go back.

#![allow(missing_docs, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

mod owner;
mod rewind;
mod scene;
mod skip;
