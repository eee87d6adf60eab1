//! Tests of every runtime: AWS Lambda, the MultiLangDaemon of KCL, and a service that shares leases with KCL.

mod daemons;
mod kcl;
mod kcl_fleet;
mod lambda;
mod lambda_crashes;
mod lambda_emulator;
mod lambda_windows;
mod matrix;
mod multilang;
