//! AWS Lambda, KCL's MultiLangDaemon and KCL itself: one processor in every runtime, each the real one.

mod daemons;
mod kcl;
mod lambda;
mod lambda_crashes;
mod lambda_emulator;
mod lambda_windows;
mod matrix;
mod multilang;
