//! What several test files share.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod dynamodb;
pub mod embedded;
pub mod emulator;
pub mod kcl;
pub mod kill;
pub mod ledger;
pub mod localstack;
pub mod proxy;
pub mod python;
pub mod script;
pub mod stream;
pub mod waiting;
