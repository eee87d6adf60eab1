//! The command, run as a program.

mod dead_letters;
mod moves;
mod run;
mod shards;
mod untrusted;
