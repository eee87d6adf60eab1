//! An operator who lists the workers of a fleet and moves a shard to another worker, on DynamoDB Local.

use std::time::Duration;

use redrive::Position;
use redrive::checkpoint::{Checkpoint, DynamoDb, LeaseOutcome, Leases as _, NewShard, Sharing};
use redrive::operator::{Announcement, FleetStatus, HandOver, HandOverRefusal, OperatorError, Shards};
use tokio::time::sleep;

use super::scene::{Handler, Scene, key, shard};
use support::dynamodb::DynamoDbLocal;
use support::emulator::unique;
use support::waiting::finished;

/// A failover time that is long enough for a busy machine to renew its leases in time.
const FAILOVER: Duration = Duration::from_secs(4);

/// Returns a function that creates stores on a table of this test. Returns `None` without DynamoDB Local.
fn table() -> Option<impl Fn(&str) -> DynamoDb> {
    let client = DynamoDbLocal::shared()?.patient_client();
    let name = unique("operated");
    Some(move |worker: &str| {
        DynamoDb::new(client.clone(), name.as_str())
            .worker(worker)
            .failover_time(FAILOVER)
            .write_interval(Duration::from_millis(50))
    })
}

async fn fleet(shards: &Shards) -> FleetStatus {
    let fleet = shards.fleet().await.expect("the store answers");
    fleet.expect("the store shares its shards")
}

/// Returns the number of open shards of the workers whose names begin so.
fn open_shards(fleet: &FleetStatus, worker: &str) -> usize {
    let workers = fleet.workers.iter();
    let workers = workers.filter(|status| status.name.starts_with(worker));
    workers.map(|status| status.open_shards).sum()
}

/// Waits until the workers have this many open shards, and none is being handed over.
async fn shares_become(shards: &Shards, expected: &[(&str, usize)]) {
    let even = async {
        loop {
            let fleet = fleet(shards).await;
            let listed = shards.list().await.expect("listed");
            let is_even = |(worker, open): &(&str, usize)| open_shards(&fleet, worker) == *open;
            if expected.iter().all(is_even) && listed.iter().all(|status| status.handed_over_to.is_none()) {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    finished(&format!("the shares become {expected:?}"), even).await;
}

fn refusal<T: std::fmt::Debug>(result: Result<T, OperatorError>) -> HandOverRefusal {
    match result {
        Err(OperatorError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn shard_moves_to_the_worker_that_the_operator_names() {
    let Some(store) = table() else { return };
    let scene = Scene::of(3).await;
    let operator = store("operator");
    let shards = scene.shards(&operator);
    let handler = Handler::default();
    let first = scene.run(&store("first"), &handler);
    shares_become(&shards, &[("first", 3)]).await;
    let second = scene.run(&store("second"), &handler);
    shares_become(&shards, &[("first", 2), ("second", 1)]).await;
    let status = fleet(&shards).await;
    let names: Vec<&str> = status.workers.iter().map(|worker| &*worker.name).collect();
    assert!(
        matches!(names[..], [first, second] if first.starts_with("first-") && second.starts_with("second-")),
        "the operator is no worker: {names:?}"
    );
    assert!(status.workers.iter().all(|worker| worker.is_native));
    assert_eq!(status.leader().map(|leader| &*leader.name), Some(names[0]));

    scene.put(&["a", "b", "c", "d", "e", "f"]).await;
    handler.has_done(6).await;
    let listed = shards.list().await.expect("listed");
    let of_first = |holder: &str| holder.starts_with("first-");
    let moved = listed.iter().find(|status| {
        let holder = status.holder.as_ref();
        holder.is_some_and(|holder| of_first(&holder.name))
    });
    let moved = moved.expect("a shard of the first worker").shard.clone();
    let asked = shards.hand_over(&moved, "second").await.expect("requested");
    let to = names[1].to_owned();
    assert!(
        matches!(&asked, HandOver::Requested { from, to, .. } if from == names[0] && to == names[1]),
        "{asked:?}"
    );
    // 1 and 2 shards are as even as 2 and 1: the leader leaves the shard where it is.
    shares_become(&shards, &[("first", 1), ("second", 2)]).await;
    let refused = refusal(shards.hand_over(&moved, "second").await);
    assert_eq!(
        refused,
        HandOverRefusal::AlreadyOwned {
            shard: moved,
            worker: to
        }
    );
    scene.put(&["g", "h", "i", "j", "k", "l"]).await;
    handler.has_done(12).await;
    first.stop().await;
    second.stop().await;
    let mut done = handler.done();
    done.sort_unstable();
    assert_eq!(done.concat(), "abcdefghijkl", "no record is lost or repeated");
}

#[tokio::test]
async fn shard_without_an_owner_is_assigned() {
    let Some(store) = table() else { return };
    let scene = Scene::new().await;
    let operator = store("operator");
    let shards = scene.shards(&operator);
    let worker = store("worker");
    let missing = shards.hand_over(&shard(), "worker").await;
    assert!(matches!(refusal(missing), HandOverRefusal::UnknownWorker { .. }));
    worker.announce().await.expect("announced");
    let missing = shards.hand_over(&shard(), "worker").await;
    assert!(
        matches!(missing, Err(OperatorError::NotBegun { .. })),
        "{missing:?}"
    );

    let row = NewShard::new(key(), Checkpoint::at(Position::TrimHorizon));
    worker.create(&[row]).await.remove(0).expect("created");
    let assigned = shards.hand_over(&shard(), "worker").await.expect("assigned");
    assert!(matches!(&assigned, HandOver::Assigned { to, .. } if to == Sharing::worker(&worker)));
    let adopted = worker.adopt(&[key()]).await.remove(0).expect("adopted");
    assert!(matches!(adopted, LeaseOutcome::Leased(_)), "{adopted:?}");

    // The owner is asked once it has renewed its lease, and another request has to wait.
    let other = store("other");
    other.announce().await.expect("announced");
    let moved = shard();
    let asked = shards.hand_over(&moved, "other");
    let renewed = async {
        sleep(Duration::from_secs(1)).await;
        let listed = shards.list().await.expect("listed").remove(0);
        assert_eq!(listed.handed_over_to, None, "asked before the owner has renewed");
        worker.renew(&key()).await.expect("renewed");
    };
    let (asked, ()) = tokio::join!(asked, renewed);
    let asked = asked.expect("requested");
    assert!(matches!(asked, HandOver::Requested { .. }), "{asked:?}");
    let listed = shards.list().await.expect("listed").remove(0);
    assert_eq!(listed.holder.expect("a holder").name, Sharing::worker(&worker));
    assert_eq!(listed.handed_over_to.as_deref(), Some(Sharing::worker(&other)));
    let again = refusal(shards.hand_over(&shard(), "worker").await);
    assert!(matches!(again, HandOverRefusal::InProgress { .. }), "{again:?}");
    worker.give_up(&key()).await.expect("handed over");
    let status = fleet(&shards).await;
    assert_eq!(
        (open_shards(&status, "worker"), open_shards(&status, "other")),
        (0, 1)
    );

    // A worker that has withdrawn gets no shard, and is not asked for one.
    other.withdraw().await.expect("withdrawn");
    let silent = refusal(shards.hand_over(&shard(), "worker").await);
    assert!(
        matches!(silent, HandOverRefusal::OwnerIsSilent { .. }),
        "{silent:?}"
    );
    let silent = refusal(shards.hand_over(&shard(), "other").await);
    assert!(
        matches!(silent, HandOverRefusal::TakesNoShards { .. }),
        "{silent:?}"
    );
    let status = fleet(&shards).await;
    let other = status
        .workers
        .iter()
        .find(|worker| worker.name.starts_with("other"));
    assert_eq!(
        other.expect("it owns a shard").announcement,
        Announcement::Missing
    );
}

#[tokio::test]
async fn store_that_does_not_share_its_shards_refuses() {
    let Some(store) = table() else { return };
    let scene = Scene::new().await;
    let standby = store("operator").standby();
    let shards = scene.shards(&standby);
    assert_eq!(shards.fleet().await.expect("it answers"), None);
    let refused = refusal(shards.hand_over(&shard(), "worker").await);
    assert!(refused.to_string().contains("does not share shards"), "{refused}");
}
