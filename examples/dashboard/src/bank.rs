//! The bank that the processor calls, the processor, and the producer of orders.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use redrive::{BoxError, Failure, MarkFailure, Record, Scope};

#[derive(Debug, Default)]
pub(crate) struct Bank {
    broken: AtomicBool,
    /// The number of next orders to make malformed.
    poison: AtomicU32,
}

impl Bank {
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    pub(crate) fn toggle(&self) {
        self.broken.fetch_xor(true, Ordering::Relaxed);
    }

    pub(crate) fn poison(&self, orders: u32) {
        self.poison.fetch_add(orders, Ordering::Relaxed);
    }
}

pub(crate) async fn bill(bank: Arc<Bank>, record: Record) -> Result<(), BoxError> {
    let order = std::str::from_utf8(record.payload()).permanent()?;
    let cents: u64 = order.parse().permanent()?;
    tokio::time::sleep(Duration::from_millis(5 + cents % 10)).await;
    match bank.is_broken() {
        true => Err(Failure::transient("the bank does not answer")
            .with_scope(Scope::Dependency)
            .with_code("BankDown")
            .into()),
        false => Ok(()),
    }
}

/// Puts 400 orders per second into the stream.
pub(crate) async fn produce(kinesis: Client, bank: Arc<Bank>) -> Result<(), aws_sdk_kinesis::Error> {
    for first in (0_u64..).step_by(40) {
        let entries = (first..first + 40).map(|order| {
            let take = |left: u32| left.checked_sub(1);
            let poisoned = bank
                .poison
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
            let payload = match poisoned {
                Ok(_) => "not a number".to_owned(),
                Err(_) => order.to_string(),
            };
            PutRecordsRequestEntry::builder()
                .partition_key(format!("customer-{}", order * 7 % 300))
                .data(Blob::new(payload))
                .build()
        });
        let entries = entries.collect::<Result<Vec<_>, _>>()?;
        let call = kinesis.put_records().stream_name("orders");
        call.set_records(Some(entries)).send().await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
