//! `cargo run --example wrap_handler`: makes an existing function resilient in ten lines.

use redrive::{Record, Resilient, Scope, SequenceNumber, classify::Verdict, dead_letter, processor_fn};
use serde::Deserialize;

// The existing code.

#[derive(Debug, Deserialize)]
struct Order {
    id: u32,
    cents: i64,
}

#[derive(Debug, thiserror::Error)]
enum MyError {
    #[error("order {0} has no price")]
    NoPrice(u32),
    #[error("the ledger is locked")]
    Locked,
}

async fn handle(order: Order) -> Result<(), MyError> {
    match order.cents {
        0 => Err(MyError::NoPrice(order.id)),
        cents if cents < 0 => Err(MyError::Locked),
        cents => {
            println!("order {}: {cents} cents", order.id);
            Ok(())
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // The ten lines that make it resilient.
    let letters = dead_letter::Memory::new();
    let orders = Resilient::builder(
        "billing",
        processor_fn(async |record: Record| -> Result<(), anyhow::Error> {
            Ok(handle(serde_json::from_slice(record.payload())?).await?)
        }),
    )
    .classify(|error: &anyhow::Error| match error.downcast_ref()? {
        MyError::NoPrice(_) => Some(Verdict::permanent().with_code("no_price")),
        // Only this order's ledger is locked: with `Scope::Record` the failure does not count as an outage.
        MyError::Locked => Some(
            Verdict::transient()
                .with_scope(Scope::Record)
                .with_code("ledger_locked"),
        ),
    })
    .dead_letters(letters.clone())
    .build()?;

    // A consumer settles every record of a stream; this example settles records by hand.
    let payloads = [
        r#"{"id": 1, "cents": 250}"#,
        r#"{"id": 2, "cents": 0}"#,
        r#"{"id": 3, "cents": -1}"#,
        "no JSON",
    ];
    for (payload, number) in payloads.into_iter().zip(1..) {
        let record = Record::builder(
            "orders",
            "shardId-000000000000".into(),
            SequenceNumber::from(number),
        )
        .payload(payload)
        .build();
        println!("{payload}: {:?}", orders.settle(&record).await?);
    }
    for letter in letters.letters() {
        println!(
            "dead letter: {} after {} attempts, {}: {}",
            letter.reason.as_str(),
            letter.attempts.count,
            letter.code.as_deref().unwrap_or("no code"),
            letter.error.chain.join(": ")
        );
    }
    Ok(())
}
