//! Tests of the consumer against a Kinesis server in this process, over HTTP, through a proxy that makes
//! calls fail. Some tests use LocalStack, and some cover the operator's commands on shards.

mod aggregated;
mod bad_input;
mod bad_starts;
mod bounds;
mod breakdowns;
mod checkpoints;
mod data_loss;
mod fan_out;
mod fleet;
mod health;
mod incarnations;
mod killing;
mod leases;
mod letters;
mod localstack;
mod operator;
mod reading;
mod resharding;
mod scene;
mod shared;
mod shutdown;
mod starting;
mod streams;
mod untrusted_answers;
mod wire;
