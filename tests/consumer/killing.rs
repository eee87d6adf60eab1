//! The process is killed in the middle of a run.

use redrive::testing::kinesis::KinesisServer;
use support::kill;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_is_killed_loses_nothing_and_repeats_only_what_no_checkpoint_covers() {
    let server = KinesisServer::start().await.expect("a free port");
    kill::survives_kills(server.endpoint(), "killing::child_consumer", "orders", 4, 1_800).await;
}

/// One record in hand ends the process, which no catch can stop: it becomes a letter, and no other does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_ends_every_process_becomes_a_letter() {
    let server = KinesisServer::start().await.expect("a free port");
    kill::survives_a_record_that_aborts(server.endpoint(), "killing::child_consumer", "orders").await;
}

#[test]
#[ignore = "the process that another test starts and kills"]
fn child_consumer() {
    kill::child();
}
