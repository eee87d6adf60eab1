//! Tests of a payload store of the user's own: the conformance suite, and a claim check with a replay.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use redrive::dead_letter::{ClaimCheck, ClaimError, DeadLetter, DeadLetterSink, File, Memory};
use redrive::dead_letter::{PayloadStore, SinkError};
use redrive::payload_store_conformance;
use redrive::replay::{Replay, Report, ledger, source};
use redrive::testing::payloads::Harness;
use redrive::testing::sinks::{confirmed, letter};
use redrive::{Record, Resilient, processor_with};

/// A store in this process. Clones share the payloads.
#[derive(Debug, Clone, Default)]
struct InMemory(Arc<Mutex<HashMap<String, Bytes>>>);

impl InMemory {
    fn payloads(&self) -> std::sync::MutexGuard<'_, HashMap<String, Bytes>> {
        self.0.lock().expect("no panic while locked")
    }
}

#[async_trait]
impl PayloadStore for InMemory {
    async fn put_payload(&self, letter: &DeadLetter) -> Result<String, SinkError> {
        let place = format!("memory:{}", letter.id);
        self.payloads().insert(place.clone(), letter.payload.clone());
        Ok(place)
    }

    fn covers(&self, place: &str) -> bool {
        place.starts_with("memory:")
    }

    async fn get_payload(&self, letter: &DeadLetter, place: &str) -> Result<Bytes, ClaimError> {
        let payload = self.payloads().get(place).cloned();
        let place = place.to_owned();
        let (id, expected) = (letter.id, letter.payload_bytes);
        let payload = payload.ok_or_else(|| ClaimError::Gone {
            id,
            place: place.clone(),
        })?;
        match payload.len() as u64 {
            found if found > expected => Err(ClaimError::Length {
                place,
                expected,
                found,
            }),
            _ => Ok(payload),
        }
    }
}

impl Harness for InMemory {
    fn store(&self) -> &dyn PayloadStore {
        self
    }

    async fn overwrite(&self, place: &str, bytes: Vec<u8>) {
        self.payloads().insert(place.to_owned(), bytes.into());
    }

    async fn delete(&self, place: &str) {
        self.payloads().remove(place);
    }
}

payload_store_conformance!(in_memory, async { InMemory::default() });

#[tokio::test]
async fn only_the_stated_payload_is_redeemed() {
    let (store, inside) = (InMemory::default(), Memory::new());
    let sink = ClaimCheck::new(inside.clone(), store.clone()).over(10);
    let letters = [
        letter(1, Some("a"), vec![b'x'; 10]),
        letter(2, Some("a"), vec![b'x'; 11]),
    ];
    confirmed(sink.put(&letters).await);
    let written = inside.letters();
    assert_eq!(written[0], letters[0], "10 bytes stay in the dead letter");
    assert!(written[1].payload.is_empty());
    assert_eq!(sink.redeem(written[1].clone()).await.expect("stored"), letters[1]);

    let place = written[1].payload_at.clone().expect("a place");
    store.overwrite(&place, vec![b'y'; 11]).await;
    let error = sink.redeem(written[1].clone()).await;
    assert!(matches!(error, Err(ClaimError::Digest { .. })), "{error:?}");
    store.overwrite(&place, vec![b'x'; 5]).await;
    let error = sink.redeem(written[1].clone()).await;
    assert!(
        matches!(
            error,
            Err(ClaimError::Length {
                expected: 11,
                found: 5,
                ..
            })
        ),
        "{error:?}"
    );
    let mut stated = written[1].clone();
    stated.payload_bytes = 10 * 1024 * 1024 + 1;
    let error = sink.redeem(stated.clone()).await;
    assert!(matches!(error, Err(ClaimError::TooLarge { .. })), "{error:?}");
    stated.payload_at = Some("s3://another/key.payload".to_owned());
    let error = sink.redeem(stated).await;
    assert!(matches!(error, Err(ClaimError::Elsewhere { .. })), "{error:?}");
}

#[tokio::test]
async fn replay_reads_payloads_from_an_allowed_store() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("letters.jsonl");
    let store = InMemory::default();
    let file = File::open(&path).expect("the file opens");
    let large = letter(1, Some("a"), vec![b'x'; 1_000]);
    confirmed(ClaimCheck::new(file, store.clone()).over(10).put(&[large]).await);
    let seen: Arc<Mutex<Vec<usize>>> = Arc::default();
    let processor = processor_with(
        seen.clone(),
        async |seen: Arc<Mutex<Vec<usize>>>, record: Record| -> Result<(), std::io::Error> {
            seen.lock().expect("not poisoned").push(record.payload().len());
            Ok(())
        },
    );
    let orders = Resilient::builder("billing", processor).dead_letters(Memory::new());
    let orders = orders.build().expect("complete");
    let replay = || Replay::new(source::File::new(&path)).ledger(ledger::Memory::new());
    let run = async |replay: Replay| -> Report {
        let report = replay.through(&orders, std::future::pending()).await;
        report.expect("the replay ends")
    };
    let report = run(replay()).await;
    assert_eq!((report.no_payload, report.replayed), (1, 0), "{report:?}");
    let report = run(replay().payloads(store)).await;
    assert_eq!((report.no_payload, report.replayed), (0, 1), "{report:?}");
    assert_eq!(*seen.lock().expect("not poisoned"), [1_000]);
}
