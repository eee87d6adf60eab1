//! Events, metrics, alarms and spans; and what the documents say of them.

mod alarms;
mod cloudwatch;
mod emf;
mod guarantees;
mod leaks;
mod metrics;
mod monitor;
mod traces;
