//! Dead letters: a record counts as settled once its dead letter is confirmed, never before.

use std::error::Error;

use redrive::{ConsumerError, Halt, dead_letter::DeadLetterPolicy};

use crate::scene::{Scene, records};
use support::ledger::{Note, SinkState, covers};
use support::stream::{Place, Sent};
use support::waiting::eventually;

/// Puts records that can never be processed before all others, with more records of their keys after them.
#[tokio::test]
async fn failed_record_blocks_only_its_key_while_the_sink_is_down() {
    let scene = Scene::new(2).await;
    scene.sink.set(SinkState::Down);
    for key in ["sick-1", "sick-2", "sick-3"] {
        let steps = ["bad", "ok", "bad", "bad", "ok"];
        scene
            .put(steps.map(|step| (key.to_owned(), step.to_owned())))
            .await;
    }
    scene.put(records(300, 30, |_| "ok")).await;
    let sent = scene.read().await;
    let running = scene.start();

    scene.ledger.settled(300).await;
    scene.ledger.stored(&sent).await;
    eventually("the sink is retried", || {
        scene.ledger.events("DeadLetterEvent::WriteDelayed") >= 3
    })
    .await;
    assert_eq!(
        begun_of(&scene, &sent, "sick-1").len(),
        1,
        "later records of the key wait"
    );
    {
        let stored = scene.ledger.book().last_saved();
        let (sick, well): (Vec<_>, Vec<_>) = sent.iter().partition(|sent| sent.key.starts_with("sick"));
        assert!(!sick.iter().any(|sent| covers(&stored, sent)));
        assert!(
            well.iter().all(|sent| covers(&stored, sent)),
            "records ahead of the watermark are not stored"
        );
    }

    scene.sink.set(SinkState::Up);
    scene.settle_all(running).await;
    let letters = scene.letters.letters();
    assert_eq!(letters.len(), 9);
    for key in ["sick-1", "sick-2", "sick-3"] {
        let of_key = letters
            .iter()
            .filter(|letter| letter.partition_key.as_deref() == Some(key));
        assert!(of_key.is_sorted_by_key(|letter| &letter.sequence_number));
    }
}

fn begun_of(scene: &Scene, sent: &[Sent], key: &str) -> Vec<Place> {
    let book = scene.ledger.book();
    let mut begun = Vec::new();
    for note in &book.notes {
        if let Note::Began(place) = note
            && sent.iter().any(|sent| sent.place == *place && sent.key == key)
        {
            begun.push(place.clone());
        }
    }
    begun
}

#[tokio::test]
async fn stop_policy_halts_after_a_dead_letter_and_restart_resumes() {
    let scene = Scene::new(1).await;
    scene
        .put(records(100, 1, |number| if number == 40 { "bad" } else { "ok" }))
        .await;
    let stopping = || scene.resilient().dead_letter_policy(DeadLetterPolicy::Stop);
    let running = scene.run(scene.consumer(), stopping());
    eventually("the shard halts", || {
        scene.ledger.events("ShardEvent::Halted") > 0
    })
    .await;
    let error = running.stop().await.expect_err("a shard halted");
    let ConsumerError::ShardHalted(halted) = &error else {
        panic!("{error:?}");
    };
    assert!(matches!(halted.halt, Halt::DeadLetterPolicy(_)), "{halted:?}");
    assert_eq!(scene.ledger.book().settled.len(), 41);

    let running = scene.run(scene.consumer(), stopping());
    scene.settle_all(running).await;
    assert_eq!(scene.letters.letters().len(), 1);
}

#[tokio::test]
async fn refused_dead_letter_halts_only_its_shard() {
    let scene = Scene::new(3).await;
    scene.sink.set(SinkState::Refuses("key-7".to_owned()));
    let steps = |number| match number {
        67 => "bad",
        _ => "ok",
    };
    scene.put(records(300, 60, steps)).await;
    let running = scene.start();
    eventually("a shard halts", || scene.ledger.events("ShardEvent::Halted") > 0).await;

    // The other shards continue, also with records that arrive only now.
    scene.put(records(300, 60, |_| "ok")).await;
    let sent = scene.read().await;
    let bad = sent
        .iter()
        .find(|sent| sent.data == b"bad")
        .expect("a bad record");
    let elsewhere: Vec<&Sent> = sent
        .iter()
        .filter(|sent| sent.place.shard != bad.place.shard)
        .collect();
    assert!(!elsewhere.is_empty());
    eventually("the other shards are settled", || {
        let book = scene.ledger.book();
        elsewhere.iter().all(|sent| book.settled.contains(&sent.place))
    })
    .await;
    assert!(!running.is_finished());

    let error = running.stop().await.expect_err("a shard halted");
    let ConsumerError::ShardHalted(halted) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(Place::of(&halted.record), bad.place);
    assert!(
        matches!(
            halted.halt,
            Halt::DeadLetterRefused {
                size: 2_000_000,
                limit: 1_048_576,
                ..
            }
        ),
        "{halted:?}"
    );
    let cause = error
        .source()
        .expect("a source that names the record")
        .to_string();
    assert!(
        cause.contains(bad.place.shard.as_str()) && cause.contains(bad.place.number.as_str()),
        "{cause}"
    );
    scene.ledger.check(&sent);
    assert!(
        scene.ledger.is_stored(&sent),
        "a settled record of the halted shard is not stored"
    );

    // Once the sink takes the dead letter, the next run resumes there and repeats nothing.
    scene.sink.set(SinkState::Up);
    let running = scene.start();
    scene.settle_all(running).await;
}

#[tokio::test]
async fn permanent_failure_without_a_sink_ends_the_run() {
    let scene = Scene::new(1).await;
    scene
        .put(records(100, 10, |number| if number == 42 { "bad" } else { "ok" }))
        .await;
    let sent = scene.read().await;
    let running = scene.run(scene.consumer(), scene.resilient().without_dead_letters());
    let error = running.end().await.expect_err("the only shard halted");
    let ConsumerError::ShardHalted(halted) = &error else {
        panic!("{error:?}");
    };
    assert!(matches!(halted.halt, Halt::WithoutDeadLetters(_)), "{halted:?}");
    assert_eq!(Place::of(&halted.record), sent[42].place);
    assert_eq!(halted.checkpoint.position(), &sent[41].record().position());
    scene.ledger.check(&sent);
    assert!(scene.ledger.is_stored(&sent));
}
