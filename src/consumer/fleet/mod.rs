//! Sharing a stream's shards among the workers of an application. Compiled for tests only, until a leader
//! makes plans.

mod plan;
