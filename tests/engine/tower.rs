//! Tests of tower services as handlers, and of a resilient handler as a service.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use redrive::processor::JsonError;
use redrive::tower::{ResilientLayer, processor_service};
use redrive::{BoxError, Record, Resilient, RetryPolicy, Settled, classify::Verdict, dead_letter};
use redrive::{MarkFailure, processor_fn_json};
use support::script::record;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

fn policy() -> RetryPolicy {
    RetryPolicy::constant(Duration::from_millis(10)).max_attempts(3)
}

#[tokio::test(start_paused = true)]
async fn a_service_is_tried_again_and_its_errors_are_classified() {
    let calls = Arc::new(AtomicU32::new(0));
    let letters = dead_letter::Memory::new();
    let counted = calls.clone();
    let service = ServiceBuilder::new()
        // The service is ready for one record at a time.
        .concurrency_limit(1)
        .service(service_fn(move |record: Record| {
            let call = counted.fetch_add(1, Relaxed);
            async move {
                match &record.payload()[..] {
                    b"bad" => Err(std::io::Error::other("bad")).permanent()?,
                    b"flaky" if call == 0 => Err("of unknown cause")?,
                    _ => {}
                }
                Ok::<_, BoxError>("an answer that is discarded")
            }
        }));
    let resilient = Resilient::builder("billing", processor_service(service))
        .retry(policy())
        .dead_letters(letters.clone())
        .build()
        .expect("valid");
    assert_eq!(
        resilient.settle(&record(1, "1", "flaky")).await.expect("settled"),
        Settled::Processed
    );
    assert_eq!(calls.load(Relaxed), 2);
    let settled = resilient.settle(&record(2, "2", "bad")).await.expect("settled");
    assert!(matches!(settled, Settled::DeadLettered(_)), "{settled:?}");
    assert_eq!((calls.load(Relaxed), letters.letters().len()), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_resilient_handler_is_a_service_and_a_layer_makes_one() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let mut orders = ServiceBuilder::new()
        .layer(ResilientLayer::new("billing", |builder| {
            let builder = builder.retry(policy()).dead_letters(dead_letter::Memory::new());
            builder.build().expect("valid")
        }))
        .service(service_fn(move |_: Record| {
            let call = counted.fetch_add(1, Relaxed);
            async move {
                if call < 2 {
                    Err(std::io::Error::other("later"))
                } else {
                    Ok(())
                }
            }
        }));
    let service = orders.ready().await.expect("always");
    let settled = service.call(record(1, "1", "ok")).await.expect("settled");
    assert_eq!((settled, calls.load(Relaxed)), (Settled::Processed, 3));
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_does_not_parse_is_dead_lettered_at_once() {
    #[derive(serde::Deserialize)]
    struct Order {
        cents: i64,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("declined")]
    struct Declined;

    let letters = dead_letter::Memory::new();
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let bill = processor_fn_json(move |order: Order| {
        counted.fetch_add(1, Relaxed);
        async move { if order.cents < 0 { Err(Declined) } else { Ok(()) } }
    });
    let resilient = Resilient::builder("billing", bill)
        .classify(|error| match error {
            JsonError::Handler(Declined) => Some(Verdict::permanent().with_code("declined")),
            _ => None,
        })
        .dead_letters(letters.clone())
        .build()
        .expect("valid");
    let orders = [
        (1, "{\"cents\": 250}"),
        (2, "{\"cents\": -1}"),
        (3, "{\"cents\": \"secret\"}"),
        (4, ""),
    ];
    for (number, payload) in orders {
        let settled = resilient
            .settle(&record(number, &number.to_string(), payload))
            .await
            .expect("settled");
        assert_eq!(settled == Settled::Processed, number == 1, "{payload}");
    }
    assert_eq!(calls.load(Relaxed), 2);
    let codes: Vec<_> = letters.letters().into_iter().map(|letter| letter.code).collect();
    assert_eq!(codes[0].as_deref(), Some("declined"));
    assert!(letters.letters().iter().all(|letter| letter.attempts.count == 1));
}
