//! Access to AWS: client settings, errors of calls, DynamoDB tables.
#![cfg_attr(
    not(feature = "kinesis"),
    allow(dead_code, reason = "each service uses a part of it")
)]

mod client;
mod failed_call;
#[cfg(feature = "kinesis")]
pub(crate) mod shard_list;
#[cfg(feature = "kinesis")]
pub(crate) mod shard_pages;
#[cfg(feature = "kinesis")]
mod stream_summary;
#[cfg(feature = "dynamodb")]
pub(crate) mod table;

#[cfg(feature = "kinesis")]
pub(crate) mod wire;

pub(crate) use client::*;
pub(crate) use failed_call::FailedCall;
#[cfg(feature = "kinesis")]
pub(crate) use stream_summary::stream_summary;
