//! The orders: what was put into the stream, and how often each order was processed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::fleet::STREAM;

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    sent: AtomicU64,
    /// The number of times that each order was processed.
    processed: Mutex<HashMap<u64, u64>>,
}

impl Ledger {
    pub(crate) fn note(&self, order: u64) {
        *self.processed().entry(order).or_default() += 1;
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Returns the number of repetitions: an order that was processed three times has two.
    pub(crate) fn repeated(&self) -> u64 {
        self.processed().values().map(|times| times - 1).sum()
    }

    /// Returns the number of orders that are not processed yet.
    pub(crate) fn missing(&self) -> u64 {
        self.sent().saturating_sub(self.processed().len() as u64)
    }

    /// Waits until each order is processed. Returns the number of those that are not, after this time.
    pub(crate) async fn wait_for_all(&self, patience: Duration) -> u64 {
        let start = Instant::now();
        while self.missing() > 0 && start.elapsed() < patience {
            sleep(Duration::from_millis(50)).await;
        }
        self.missing()
    }

    fn processed(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        self.processed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts 200 orders per second into the stream.
pub(crate) async fn produce(
    kinesis: Client,
    ledger: Arc<Ledger>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    for first in (0_u64..).step_by(20) {
        if stop.is_cancelled() {
            break;
        }
        let entries = (first..first + 20).map(|order| {
            PutRecordsRequestEntry::builder()
                .partition_key(format!("customer-{}", order * 7 % 300))
                .data(Blob::new(order.to_string()))
                .build()
        });
        let entries = entries.collect::<Result<Vec<_>, _>>()?;
        let call = kinesis.put_records().stream_name(STREAM);
        let reply = call.set_records(Some(entries)).send().await?;
        ensure!(reply.failed_record_count == Some(0), "the stream refuses orders");
        ledger.sent.fetch_add(20, Ordering::Relaxed);
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
