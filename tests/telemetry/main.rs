//! Events, metrics, alarms and spans; and what the documents say of them.

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

/// One test at a time has a subscriber of spans: whether a span is wanted is cached for the whole process, and the cache is
/// rebuilt while subscribers come and go.
async fn turn_to_subscribe() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}
