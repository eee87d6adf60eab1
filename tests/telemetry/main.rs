//! Events, metrics, alarms and spans, and checks of the documents that describe them.

mod alarms;
mod cloudwatch;
mod documents;
mod emf;
mod guarantees;
mod leaks;
mod metrics;
mod monitor;
mod policies;
mod traces;

use tokio::sync::{Mutex, MutexGuard};

/// Lets one test at a time subscribe to spans. Whether a span is wanted is cached for the whole process, and
/// each new or dropped subscriber rebuilds the cache.
async fn turn_to_subscribe() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}
