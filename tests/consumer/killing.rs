//! The process is killed in the middle of a run.

use crate::support::embedded::Embedded;
use crate::support::kill;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_is_killed_loses_nothing_and_repeats_only_what_no_checkpoint_covers() {
    let server = Embedded::start().await.expect("a free port");
    kill::survives_kills(server.endpoint(), "killing::child_consumer", "orders", 4, 1_800).await;
}

#[test]
#[ignore = "the process that another test starts and kills"]
fn child_consumer() {
    kill::child();
}
