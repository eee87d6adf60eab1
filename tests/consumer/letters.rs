//! Dead letters: a record counts as settled when its letter is confirmed, never before.

use std::error::Error;

use redrive::{ConsumerError, DeadLetterPolicy, Halt};

use crate::scene::{Scene, records};
use support::ledger::{Note, SinkState, covers};
use support::stream::{Place, Sent};
use support::waiting::eventually;

/// A record that can never be processed stands before everything else, and its key goes on behind it.
#[tokio::test]
async fn while_the_sink_is_down_a_failed_record_holds_up_its_key_and_nothing_else() {
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
    eventually("the sink is tried again", || {
        scene.ledger.events("DeadLetterDelayed") >= 3
    })
    .await;
    assert_eq!(begun_of(&scene, &sent, "sick-1").len(), 1, "its key waits");
    {
        let stored = scene.ledger.book().last_saved();
        let (sick, well): (Vec<_>, Vec<_>) = sent.iter().partition(|sent| sent.key.starts_with("sick"));
        assert!(!sick.iter().any(|sent| covers(&stored, sent)));
        assert!(
            well.iter().all(|sent| covers(&stored, sent)),
            "ahead of the watermark"
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
async fn after_a_dead_letter_a_shard_stops_if_it_is_told_to_and_a_restart_goes_on_behind_it() {
    let scene = Scene::new(1).await;
    scene
        .put(records(100, 1, |number| if number == 40 { "bad" } else { "ok" }))
        .await;
    let stopping = || scene.resilient().dead_letter_policy(DeadLetterPolicy::Stop);
    let running = scene.run(scene.consumer(), stopping());
    eventually("the shard halts", || scene.ledger.events("ShardHalted") > 0).await;
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
async fn a_letter_that_is_refused_halts_its_shard_and_no_other() {
    let scene = Scene::new(3).await;
    scene.sink.set(SinkState::Refuses("key-7".to_owned()));
    let steps = |number| match number {
        67 => "bad",
        _ => "ok",
    };
    scene.put(records(300, 60, steps)).await;
    let running = scene.start();
    eventually("a shard halts", || scene.ledger.events("ShardHalted") > 0).await;

    // The others go on, also with what comes only now.
    scene.put(records(300, 60, |_| "ok")).await;
    let sent = scene.read().await;
    let bad = sent.iter().find(|sent| sent.data == b"bad").expect("one is bad");
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
    let cause = error.source().expect("says which").to_string();
    assert!(
        cause.contains(bad.place.shard.as_str()) && cause.contains(bad.place.number.as_str()),
        "{cause}"
    );
    scene.ledger.check(&sent);
    assert!(
        scene.ledger.is_stored(&sent),
        "what the halted shard settled is stored"
    );

    // Once the sink takes it, the next run goes on from there and repeats nothing.
    scene.sink.set(SinkState::Up);
    let running = scene.start();
    scene.settle_all(running).await;
}

#[tokio::test]
async fn without_a_sink_a_record_that_failed_for_good_ends_the_run() {
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
