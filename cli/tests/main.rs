//! The command, as a process of its own.

mod dead_letters;
mod shards;
