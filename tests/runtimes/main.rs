//! One processor in every runtime, each the real one: KCL's own MultiLangDaemon among them, whose children are this
//! program once more.
//!
//! Slow: KCL takes a minute or more before its first record.

#[path = "../support/mod.rs"]
mod support;

mod daemons;
mod matrix;
