//! The orders, and the processor that bills them.

use std::sync::Mutex;
use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use redrive::processor::Attempt;
use redrive::{Record, RecordProcessor};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    id: u64,
    customer: String,
    cents: i64,
}

/// Puts `count` orders into the stream: 0.2 % are cut off in the middle, 0.1 % have a negative amount.
pub async fn put(client: &Client, stream: &str, count: u64) -> anyhow::Result<()> {
    let ids: Vec<u64> = (0..count).collect();
    for ids in ids.chunks(500) {
        let entries = ids.iter().map(|&id| {
            let customer = format!("customer-{}", id * 7919 % 997);
            let cents = if id % 1_000 == 500 {
                -1
            } else {
                100 + (id % 900) as i64
            };
            let mut json = serde_json::to_vec(&Order {
                id,
                customer: customer.clone(),
                cents,
            })?;
            if id % 500 == 250 {
                json.truncate(json.len() / 2);
            }
            let entry = PutRecordsRequestEntry::builder()
                .partition_key(customer)
                .data(Blob::new(json));
            Ok(entry.build()?)
        });
        let entries = entries.collect::<anyhow::Result<Vec<_>>>()?;
        let reply = client
            .put_records()
            .stream_name(stream)
            .set_records(Some(entries))
            .send()
            .await?;
        if reply.failed_record_count.unwrap_or(0) > 0 {
            anyhow::bail!("the embedded server refused a record");
        }
    }
    Ok(())
}

/// The processor, which bills an order and remembers its record.
#[derive(Debug, Default)]
pub struct Billing {
    billed: Mutex<Vec<Billed>>,
}

/// A record that was billed.
#[derive(Debug, Clone)]
pub struct Billed {
    pub shard: String,
    pub sequence_number: String,
}

#[derive(Debug, thiserror::Error)]
pub enum BillingError {
    #[error("not an order")]
    NotAnOrder(#[from] serde_json::Error),
    #[error("the bank does not answer")]
    BankDown,
}

impl RecordProcessor for Billing {
    type Error = BillingError;

    async fn process(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), BillingError> {
        // redrive classifies serde_json's parse errors as permanent, because a retry cannot fix them.
        let order: Order = serde_json::from_slice(record.payload())?;
        assert!(order.cents > 0, "a bug that only a few orders meet");
        tokio::time::sleep(Duration::from_millis(1)).await;
        if order.id % 100 == 7 && attempt.number() < 3 {
            return Err(BillingError::BankDown);
        }
        let mut billed = self
            .billed
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        billed.push(Billed {
            shard: record.shard().to_string(),
            sequence_number: record.sequence_number().to_string(),
        });
        Ok(())
    }
}

impl Billing {
    /// Returns the billed records, in the order of billing.
    pub fn billed(&self) -> Vec<Billed> {
        self.billed
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }
}
