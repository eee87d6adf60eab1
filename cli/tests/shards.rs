//! `redrive shards` as a program: what it prints, what it moves, and how it exits.

use std::process::Stdio;
use std::time::Duration;

use redrive::checkpoint::{
    Checkpoint, CheckpointStore, DynamoDb, Leadership, LeaseOutcome, Leases as _, NewShard, Redb, ShardKey,
    Sharing,
};
use redrive::dead_letter::{self, Reason};
use redrive::testing::kinesis::{self, KinesisServer};
use redrive::{Position, ShardId};
use serde_json::Value;
use support::dynamodb::DynamoDbLocal;
use support::emulator::unique;
use support::stream::{self, Sent};
use support::waiting::finished;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::sleep;

const SHARD: &str = "shardId-000000000000";

fn key() -> ShardKey {
    ShardKey::new("billing", "orders", ShardId::from(SHARD))
}

/// A stream with records, and a folder.
struct Scene {
    server: KinesisServer,
    sent: Vec<Sent>,
    folder: TempDir,
    dynamodb: Option<String>,
}

/// The exit code and the output of a run.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Scene {
    async fn new() -> Self {
        let server = KinesisServer::start().await.expect("a free port");
        let client = server.client();
        let created = kinesis::create_stream(&client, "orders", 1).await;
        created.expect("a stream");
        let records = (0..4).map(|number| ("alice@example.com", format!("secret {number}")));
        stream::put(&client, "orders", records).await;
        Scene {
            sent: stream::read(&client, "orders").await,
            server,
            folder: tempfile::tempdir().expect("a folder"),
            dynamodb: None,
        }
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn redb(&self) -> Redb {
        Redb::open(self.file("checkpoints.redb")).expect("it opens")
    }

    fn position(&self, number: usize) -> Position {
        self.sent[number].record().position()
    }

    async fn run(&self, store: &str, args: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_redrive"));
        command
            .arg("shards")
            .args(args)
            .args([
                "--application",
                "billing",
                "--stream",
                "orders",
                "--checkpoints",
                store,
            ])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .env_clear()
            .env("HOME", self.folder.path())
            .env("AWS_ENDPOINT_URL", self.server.endpoint())
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test");
        if let Some(endpoint) = &self.dynamodb {
            command.env("AWS_ENDPOINT_URL_DYNAMODB", endpoint);
        }
        let output = finished("the command ends", command.output()).await;
        let output = output.expect("it runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        let ended = Ended {
            code: output.status.code(),
            out: text(output.stdout),
            err: text(output.stderr),
        };
        for hidden in ["secret", "alice"] {
            assert!(
                !ended.out.contains(hidden) && !ended.err.contains(hidden),
                "{ended:?}"
            );
        }
        ended
    }
}

async fn save(store: &impl CheckpointStore, position: Position) {
    let saved = store.save(&[(key(), Checkpoint::at(position))]).await;
    saved.into_iter().next().expect("a result").expect("it is saved");
}

async fn position(store: &impl CheckpointStore) -> Position {
    let loaded = store.load(&[key()]).await.remove(0).expect("it answers");
    loaded.expect("a row").position().clone()
}

/// The lines of JSON.
fn lines(text: &str) -> Vec<Value> {
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

#[tokio::test]
async fn a_record_is_skipped_and_a_shard_goes_back() {
    let scene = Scene::new().await;
    save(&scene.redb(), scene.position(0)).await;
    let store = format!("redb:{}", scene.file("checkpoints.redb"));
    let letters = format!("file:{}", scene.file("letters.jsonl"));
    let skip = ["skip", SHARD, "--dead-letters", &letters];
    let stands = async || position(&scene.redb()).await;

    let listed = scene.run(&store, &["list"]).await;
    assert_eq!(listed.code, Some(0), "{listed:?}");
    let number = scene.sent[0].place.number.as_str();
    assert!(
        listed.out.contains(SHARD) && listed.out.contains(number),
        "{listed:?}"
    );
    let listed = lines(&scene.run(&store, &["list", "--json"]).await.out);
    assert_eq!((listed.len(), &listed[0]["shard"]), (1, &SHARD.into()));
    assert_eq!(listed[0]["position"], number);

    // Only said, and asked without anybody to answer.
    let dry = scene.run(&store, &[&skip[..], &["--dry-run"]].concat()).await;
    assert_eq!(dry.code, Some(0), "{dry:?}");
    let next = scene.sent[1].place.number.as_str();
    assert!(dry.out.contains(next), "{dry:?}");
    let asked = scene.run(&store, &skip).await;
    assert_eq!(asked.code, Some(1), "{asked:?}");
    assert!(asked.err.contains("--yes"), "{asked:?}");
    assert!(!scene.folder.path().join("letters.jsonl").exists());
    assert_eq!(stands().await, scene.position(0));

    let at = ["--yes", "--json", "--at", next];
    let skipped = scene.run(&store, &[&skip[..], &at].concat()).await;
    assert_eq!(skipped.code, Some(0), "{skipped:?}");
    let told = lines(&skipped.out);
    assert_eq!(told[0]["payload_bytes"], 8);
    assert_eq!(told[2]["position"], next);
    assert_eq!(stands().await, scene.position(1));
    let written: Vec<_> = dead_letter::File::read(scene.file("letters.jsonl")).collect();
    assert_eq!(written.len(), 1);
    let letter = written[0].as_ref().expect("readable");
    assert_eq!(letter.reason, Reason::Operator);
    assert_eq!(letter.payload, "secret 1");
    // The same again is another record's.
    let again = scene.run(&store, &[&skip[..], &at].concat()).await;
    assert_eq!(again.code, Some(3), "{again:?}");
    assert_eq!(stands().await, scene.position(1));

    for (to, code, stands_at) in [
        (scene.sent[3].place.number.as_str(), 3, scene.position(1)),
        ("yesterday", 2, scene.position(1)),
        (number, 0, scene.position(0)),
        ("trim-horizon", 0, Position::TrimHorizon),
    ] {
        let back = scene.run(&store, &["rewind", SHARD, "--yes", "--to", to]).await;
        assert_eq!(back.code, Some(code), "{to}: {back:?}");
        assert_eq!(stands().await, stands_at, "{to}");
    }
    let back = scene.run(&store, &["rewind", SHARD, "--yes", "--to", "1h"]).await;
    assert_eq!(back.code, Some(0), "{back:?}");
    assert!(matches!(stands().await, Position::AtTimestamp { .. }));
}

#[tokio::test]
async fn a_store_that_is_not_there_or_in_use_is_no_store() {
    let scene = Scene::new().await;
    let store = format!("redb:{}", scene.file("checkpoints.redb"));
    let missing = scene.run(&store, &["list"]).await;
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert!(!scene.folder.path().join("checkpoints.redb").exists());

    let in_use = scene.redb();
    save(&in_use, scene.position(0)).await;
    let refused = scene
        .run(
            &store,
            &["rewind", SHARD, "--to", "trim-horizon", "--yes", "--force"],
        )
        .await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("open in another process"), "{refused:?}");
    assert_eq!(position(&in_use).await, scene.position(0));
}

#[tokio::test]
async fn an_owner_that_lives_keeps_its_shard_unless_it_is_forced() {
    let Some(server) = DynamoDbLocal::shared() else {
        return;
    };
    let mut scene = Scene::new().await;
    scene.dynamodb = Some(server.endpoint().to_owned());
    let table = unique("billing");
    let address = format!("dynamodb:{table}");
    let missing = scene.run(&address, &["list"]).await;
    assert_eq!(missing.code, Some(1), "{missing:?}");
    let described = server.client().describe_table().table_name(&table).send().await;
    let missing = described.expect_err("none is made").into_service_error();
    assert!(missing.is_resource_not_found_exception(), "{missing:?}");

    let owner = DynamoDb::new(server.patient_client(), table.as_str()).worker("first");
    let begun = NewShard::new(key(), Checkpoint::at(Position::TrimHorizon));
    owner.create(&[begun]).await.remove(0).expect("it is made");
    let taken = owner.take(&[key()]).await.remove(0);
    assert!(matches!(taken, Ok(LeaseOutcome::Leased(_))), "{taken:?}");
    save(&owner, scene.position(2)).await;
    let lives = tokio::spawn({
        let owner = owner.clone();
        async move {
            while owner.renew(&key()).await.is_ok() {
                sleep(Duration::from_millis(100)).await;
            }
        }
    });
    let back = ["rewind", SHARD, "--yes", "--to", "trim-horizon"];
    let refused = scene.run(&address, &back).await;
    assert_eq!(refused.code, Some(4), "{refused:?}");
    assert!(refused.err.contains("is leased by first-"), "{refused:?}");
    let listed = scene.run(&address, &["list", "--json"]).await;
    let holder = lines(&listed.out)[0]["leased_by"].clone();
    assert!(
        holder.as_str().is_some_and(|it| it.starts_with("first-")),
        "{listed:?}"
    );
    assert_eq!(position(&owner).await, scene.position(2));

    let forced = scene.run(&address, &[&back[..], &["--force"]].concat()).await;
    assert_eq!(forced.code, Some(0), "{forced:?}");
    assert_eq!(position(&owner).await, Position::TrimHorizon);
    lives.abort();
}

/// Returns the names of the tables that begin with this name.
async fn tables(server: &DynamoDbLocal, name: &str) -> Vec<String> {
    let client = server.client();
    let mut pages = client.list_tables().into_paginator().items().send();
    let mut found = Vec::new();
    while let Some(table) = pages.next().await {
        found.push(table.expect("listed"));
    }
    found.retain(|table| table.starts_with(name));
    found
}

#[tokio::test]
async fn workers_are_listed_and_a_shard_moves_between_them() {
    let Some(server) = DynamoDbLocal::shared() else {
        return;
    };
    let mut scene = Scene::new().await;
    scene.dynamodb = Some(server.endpoint().to_owned());
    let table = unique("billing");
    let address = format!("dynamodb:{table}");
    let worker = |name: &str| DynamoDb::new(server.patient_client(), table.as_str()).worker(name);
    let (first, second) = (worker("web-1"), worker("web-2"));
    let begun = NewShard::new(key(), Checkpoint::at(Position::TrimHorizon));
    first.create(&[begun]).await.remove(0).expect("it is created");

    // A table whose workers stand by has no other tables, and the command creates none.
    let listed = scene.run(&address, &["list"]).await;
    assert_eq!(listed.code, Some(0), "{listed:?}");
    assert_eq!(listed.out.lines().count(), 1, "{listed:?}");
    let refused = scene.run(&address, &["move", SHARD, "web"]).await;
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(
        refused.err.contains("no worker takes shards now; start one"),
        "{refused:?}"
    );
    assert_eq!(tables(server, &table).await, std::slice::from_ref(&table));

    for store in [&first, &second] {
        store.announce().await.expect("announced");
    }
    let lead = first.lead(Duration::ZERO).await.expect("the store answers");
    assert_eq!(lead, Leadership::Leader);
    for (name, said) in [
        ("db", "there is no worker \"db\"; choose one of web-1-"),
        ("web", "\"web\" is the beginning of several names: web-1-"),
    ] {
        let refused = scene.run(&address, &["move", SHARD, name]).await;
        assert_eq!(refused.code, Some(3), "{refused:?}");
        assert!(refused.err.contains(said), "{refused:?}");
    }
    let assigned = scene.run(&address, &["move", SHARD, "web-1"]).await;
    assert_eq!(assigned.code, Some(0), "{assigned:?}");
    assert!(
        assigned.out.contains("had no owner, assigned to web-1-"),
        "{assigned:?}"
    );
    let adopted = first.adopt(&[key()]).await.remove(0);
    assert!(matches!(adopted, Ok(LeaseOutcome::Leased(_))), "{adopted:?}");
    let again = scene.run(&address, &["move", SHARD, "web-1"]).await;
    assert_eq!(again.code, Some(3), "{again:?}");
    assert!(again.err.contains("is owned by web-1-"), "{again:?}");

    let moved = key();
    let renewing = async {
        loop {
            first.renew(&moved).await.expect("renewed");
            sleep(Duration::from_millis(500)).await;
        }
    };
    let asked = tokio::select! {
        asked = scene.run(&address, &["move", SHARD, "web-2", "--json"]) => asked,
        () = renewing => unreachable!("renews until the command has ended"),
    };
    assert_eq!(asked.code, Some(0), "{asked:?}");
    let asked = lines(&asked.out).remove(0);
    assert_eq!(
        (&asked["from"], &asked["to"]),
        (&Sharing::worker(&first).into(), &Sharing::worker(&second).into())
    );
    let listed = scene.run(&address, &["list"]).await;
    for said in [
        format!(
            "leased by {}  being handed over to {}",
            Sharing::worker(&first),
            Sharing::worker(&second)
        ),
        format!(
            "worker {}  open shards: 1  redrive  announced: recent  leader",
            Sharing::worker(&first)
        ),
        format!(
            "worker {}  open shards: 0  redrive  announced: recent\n",
            Sharing::worker(&second)
        ),
    ] {
        assert!(listed.out.contains(&said), "{said}: {listed:?}");
    }
    first.give_up(&key()).await.expect("handed over");
    let listed = lines(&scene.run(&address, &["list", "--json"]).await.out);
    assert_eq!(listed[0]["leased_by"], Sharing::worker(&second));
    assert_eq!(listed[0]["handed_over_to"], Value::Null);
    assert_eq!(
        (&listed[2]["worker"], &listed[2]["open_shards"]),
        (&Sharing::worker(&second).into(), &1.into())
    );
    assert_eq!((&listed[1]["leader"], listed.len()), (&true.into(), 3));

    // The command is neither a worker nor the leader.
    assert_eq!(first.workers().await.expect("listed").len(), 2);
    let leader = second.leader().await.expect("the store answers");
    assert_eq!(leader.as_deref(), Some(Sharing::worker(&first)));
}

#[tokio::test]
async fn file_has_no_workers_to_move_a_shard_to() {
    let scene = Scene::new().await;
    save(&scene.redb(), scene.position(0)).await;
    let store = format!("redb:{}", scene.file("checkpoints.redb"));
    let refused = scene.run(&store, &["move", SHARD, "web"]).await;
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(
        refused.err.contains("does not share shards among workers"),
        "{refused:?}"
    );
}
