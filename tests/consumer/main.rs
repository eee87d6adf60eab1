//! The polling consumer against a Kinesis server in this process, over HTTP, through a proxy that makes
//! calls fail.

#[path = "../support/mod.rs"]
mod support;

mod aggregated;
mod bad_input;
mod bounds;
mod breakdowns;
mod checkpoints;
mod data_loss;
mod fan_out;
mod health;
mod killing;
mod leases;
mod letters;
mod reading;
mod resharding;
mod scene;
mod shutdown;
mod starting;
mod streams;
