//! Tests of the protocol of KCL's MultiLangDaemon. The test plays the daemon. Time is paused throughout.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use redrive::dead_letter;
use redrive::multilang::{MultiLangError, Worker};
use redrive::pipeline::Pipeline;
use redrive::testing::Script;
use redrive::{Jitter, Resilient, RetryPolicy};
use serde_json::{Value, json};
use tokio::io::{
    AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, ReadHalf, WriteHalf, duplex, split,
};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// The daemon side of the pipes.
struct Daemon {
    to_child: Option<WriteHalf<DuplexStream>>,
    from_child: BufReader<ReadHalf<DuplexStream>>,
    child: JoinHandle<Result<(), MultiLangError>>,
}

fn record_json(number: u64, sub: u64, steps: &str) -> Value {
    json!({
        "action": "record",
        "data": BASE64.encode(steps),
        "partitionKey": format!("key-{number}"),
        "sequenceNumber": number.to_string(),
        "subSequenceNumber": sub,
        "approximateArrivalTimestamp": 1_545_084_650_987_u64,
    })
}

fn records(records: &[Value]) -> Value {
    json!({"action": "processRecords", "records": records, "millisBehindLatest": 0})
}

fn checkpoint(number: u64, sub: u64) -> Value {
    json!({"action": "checkpoint", "sequenceNumber": number.to_string(), "subSequenceNumber": sub})
}

fn stored(error: Option<&str>) -> Value {
    json!({"action": "checkpoint", "sequenceNumber": "1", "subSequenceNumber": 0, "error": error})
}

fn status(of: &str) -> Value {
    json!({"action": "status", "responseFor": of})
}

impl Daemon {
    fn start(script: &Script, letters: &dead_letter::Memory, pipeline: Pipeline) -> Self {
        let policy = RetryPolicy::constant(Duration::from_secs(1)).jitter(Jitter::None);
        let resilient = Resilient::builder("billing", script.clone())
            .retry(policy.max_attempts(3).attempt_timeout(Duration::from_secs(3_600)))
            .dead_letters(letters.clone())
            .build()
            .expect("valid");
        let worker = Worker::new(resilient, "orders")
            .pipeline(pipeline)
            .checkpoint_interval(Duration::ZERO);
        Daemon::of(worker)
    }

    /// Starts this worker as the child.
    fn of(worker: Worker<Script>) -> Self {
        let (ours, theirs) = duplex(1 << 20);
        let (input, output) = split(theirs);
        let (from_child, to_child) = split(ours);
        Daemon {
            to_child: Some(to_child),
            from_child: BufReader::new(from_child),
            child: tokio::spawn(worker.run_with(BufReader::new(input), output)),
        }
    }

    /// Starts a child and initializes its shard.
    async fn begun(script: &Script, letters: &dead_letter::Memory, pipeline: Pipeline) -> Self {
        let mut daemon = Daemon::start(script, letters, pipeline);
        let initialize = json!({
            "action": "initialize",
            "shardId": "shardId-000000000003",
            "sequenceNumber": "TRIM_HORIZON",
            "subSequenceNumber": 0,
        });
        daemon.say(&initialize).await;
        assert_eq!(daemon.hear().await, status("initialize"));
        daemon
    }

    async fn say(&mut self, message: &Value) {
        let line = format!("{message}\n\n");
        let to_child = self.to_child.as_mut().expect("the daemon is running");
        to_child
            .write_all(line.as_bytes())
            .await
            .expect("the child reads");
    }

    async fn hear(&mut self) -> Value {
        let mut line = String::new();
        while line.trim().is_empty() {
            line.clear();
            let read = self
                .from_child
                .read_line(&mut line)
                .await
                .expect("the child writes");
            assert!(read > 0, "the child has ended");
        }
        serde_json::from_str(&line).expect("JSON")
    }

    /// Returns whether the child sends nothing for ten minutes.
    async fn is_silent(&mut self) -> bool {
        let mut line = Vec::new();
        let said = self.from_child.read_until(b'\n', &mut line);
        timeout(Duration::from_secs(600), said).await.is_err() && line.is_empty()
    }

    /// Sends empty batches until the child sends a checkpoint. Confirms and returns the checkpoint.
    async fn next_checkpoint(&mut self) -> Value {
        for _ in 0..100 {
            self.say(&records(&[])).await;
            let said = self.hear().await;
            if said["action"] == "checkpoint" {
                self.say(&stored(None)).await;
                assert_eq!(self.hear().await, status("processRecords"));
                return said;
            }
            assert_eq!(said, status("processRecords"));
            sleep(Duration::from_millis(100)).await;
        }
        panic!("the child sends no checkpoint");
    }

    /// Closes the pipes, as if the daemon had died.
    async fn go(mut self) -> Result<(), MultiLangError> {
        self.to_child = None;
        drop(self.from_child);
        let ended = timeout(Duration::from_secs(600), self.child).await;
        ended.expect("the child ends").expect("no panic")
    }
}

#[tokio::test(start_paused = true)]
async fn shard_is_processed_and_checkpointed_to_its_end() {
    let (script, letters) = (Script::default(), dead_letter::Memory::new());
    let mut daemon = Daemon::begun(&script, &letters, Pipeline::default()).await;
    daemon
        .say(&records(&[
            record_json(1, 0, "ok"),
            record_json(2, 0, "bad"),
            record_json(3, 0, "fail,ok"),
        ]))
        .await;
    assert_eq!(daemon.hear().await, status("processRecords"));
    // The checkpoint of an aggregated record has its sub-sequence number.
    daemon
        .say(&records(&[record_json(7, 0, "ok"), record_json(7, 1, "ok")]))
        .await;
    let mut said = daemon.hear().await;
    while said["action"] == "checkpoint" {
        daemon.say(&stored(None)).await;
        said = daemon.hear().await;
    }
    assert_eq!(said, status("processRecords"));
    sleep(Duration::from_secs(10)).await;
    let mut last = daemon.next_checkpoint().await;
    while last != checkpoint(7, 1) {
        last = daemon.next_checkpoint().await;
    }
    daemon.say(&json!({"action": "shardEnded"})).await;
    let end = json!({"action": "checkpoint", "sequenceNumber": null, "subSequenceNumber": null});
    assert_eq!(daemon.hear().await, end);
    // The child sends a failed checkpoint again, because the child shards wait for it.
    daemon.say(&stored(Some("ThrottlingException"))).await;
    assert_eq!(daemon.hear().await, end);
    daemon.say(&stored(None)).await;
    assert_eq!(daemon.hear().await, status("shardEnded"));
    daemon.go().await.expect("the child ends without an error");
    assert_eq!((script.calls().len(), letters.letters().len()), (6, 1));
    let letter = &letters.letters()[0];
    assert_eq!(
        (&*letter.stream, letter.shard.as_str()),
        ("orders", "shardId-000000000003")
    );
}

#[tokio::test(start_paused = true)]
async fn no_checkpoint_passes_an_unsettled_record() {
    let (script, letters) = (Script::default(), dead_letter::Memory::new());
    let mut daemon = Daemon::begun(&script, &letters, Pipeline::default()).await;
    daemon
        .say(&records(&[
            record_json(1, 0, "ok"),
            record_json(2, 0, "gate"),
            record_json(3, 0, "ok"),
        ]))
        .await;
    assert_eq!(daemon.hear().await, status("processRecords"));
    assert_eq!(daemon.next_checkpoint().await, checkpoint(1, 0));
    for _ in 0..20 {
        daemon.say(&records(&[])).await;
        assert_eq!(
            daemon.hear().await,
            status("processRecords"),
            "there is no new checkpoint"
        );
        sleep(Duration::from_secs(1)).await;
    }
    // The end of the shard also waits for the unsettled record.
    daemon.say(&json!({"action": "shardEnded"})).await;
    assert!(daemon.is_silent().await);
    script.open_gate();
    assert_eq!(daemon.hear().await["sequenceNumber"], Value::Null);
    daemon.say(&stored(None)).await;
    assert_eq!(daemon.hear().await, status("shardEnded"));
    daemon.go().await.expect("the child ends without an error");
    assert_eq!(script.done().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn answer_is_withheld_only_while_the_window_is_full() {
    let (script, letters) = (Script::default(), dead_letter::Memory::new());
    let pipeline = Pipeline::builder().in_flight(4).build().expect("valid");
    let mut daemon = Daemon::begun(&script, &letters, pipeline).await;
    let batch = |first: u64| records(&[record_json(first, 0, "gate"), record_json(first + 1, 0, "gate")]);
    // Two batches fill the window, one batch is read ahead, and one waits in the pipe.
    let mut answered = 0;
    for first in [1, 3, 5, 7, 9] {
        daemon.say(&batch(first)).await;
        match timeout(Duration::from_secs(600), daemon.hear()).await {
            Ok(said) => assert_eq!(said, status("processRecords")),
            Err(_) => break,
        }
        answered += 1;
    }
    assert!((2..=4).contains(&answered), "{answered}");
    script.open_gate();
    let mut said = daemon.hear().await;
    while said["action"] == "checkpoint" {
        daemon.say(&stored(None)).await;
        said = daemon.hear().await;
    }
    assert_eq!(said, status("processRecords"));
    daemon.go().await.expect("the child ends without an error");
}

#[tokio::test(start_paused = true)]
async fn requested_shutdown_checkpoints_settled_records() {
    let (script, letters) = (Script::default(), dead_letter::Memory::new());
    let mut daemon = Daemon::begun(&script, &letters, Pipeline::default()).await;
    daemon
        .say(&records(&[
            record_json(1, 0, "ok"),
            record_json(2, 0, "sleep:5000"),
            record_json(3, 0, "hang"),
        ]))
        .await;
    assert_eq!(daemon.hear().await, status("processRecords"));
    daemon.say(&json!({"action": "shutdownRequested"})).await;
    assert_eq!(
        daemon.hear().await,
        checkpoint(2, 0),
        "running handlers may finish"
    );
    daemon.say(&stored(None)).await;
    assert_eq!(daemon.hear().await, status("shutdownRequested"));
    daemon.say(&json!({"action": "leaseLost"})).await;
    assert_eq!(daemon.hear().await, status("leaseLost"));
    daemon.go().await.expect("the child ends without an error");
}

#[tokio::test(start_paused = true)]
async fn lost_lease_cancels_running_handlers() {
    let (script, letters) = (Script::default(), dead_letter::Memory::new());
    let mut daemon = Daemon::begun(&script, &letters, Pipeline::default()).await;
    daemon
        .say(&records(&[
            record_json(1, 0, "sleep:60000"),
            record_json(2, 0, "fail"),
        ]))
        .await;
    assert_eq!(daemon.hear().await, status("processRecords"));
    daemon.say(&json!({"action": "leaseLost"})).await;
    assert_eq!(daemon.hear().await, status("leaseLost"));
    let calls = script.calls().len();
    sleep(Duration::from_secs(3_600)).await;
    assert_eq!((script.calls().len(), script.done().len()), (calls, 0));
    daemon.go().await.expect("the child ends without an error");
}

#[tokio::test(start_paused = true)]
async fn worker_of_an_arn_gives_records_the_stream_name() {
    let letters = dead_letter::Memory::new();
    let resilient = Resilient::builder("billing", Script::default())
        .dead_letters(letters.clone())
        .build()
        .expect("valid");
    let queue = Worker::new(resilient.clone(), "arn:aws:sqs:us-east-1:000000000000:orders");
    let error = queue.run_with(&b""[..], tokio::io::sink()).await;
    assert!(matches!(error, Err(MultiLangError::Config(_))), "{error:?}");

    let worker = Worker::new(resilient, "arn:aws:kinesis:us-east-1:000000000000:stream/orders");
    let mut daemon = Daemon::of(worker);
    daemon
        .say(&json!({"action": "initialize", "shardId": "shardId-0", "sequenceNumber": "5", "subSequenceNumber": null}))
        .await;
    assert_eq!(daemon.hear().await, status("initialize"));
    daemon.say(&records(&[record_json(6, 0, "bad")])).await;
    assert_eq!(daemon.hear().await, status("processRecords"));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(letters.letters()[0].stream, "orders");
    daemon.go().await.expect("the child ends without an error");
}

/// The process must not exit, because the daemon would restart it again and again.
#[tokio::test(start_paused = true)]
async fn halted_shard_waits_until_the_input_ends() {
    let script = Script::default();
    let resilient = Resilient::builder("billing", script.clone())
        .without_dead_letters()
        .build()
        .expect("valid");
    let mut daemon = Daemon::of(Worker::new(resilient, "orders"));
    daemon
        .say(&json!({"action": "initialize", "shardId": "shardId-0", "sequenceNumber": "5", "subSequenceNumber": null}))
        .await;
    assert_eq!(daemon.hear().await, status("initialize"));
    daemon.say(&records(&[record_json(6, 0, "bad")])).await;
    assert_eq!(daemon.hear().await, status("processRecords"));
    daemon.say(&records(&[record_json(7, 0, "ok")])).await;
    if timeout(Duration::from_secs(1), daemon.hear()).await.is_ok() {
        daemon.say(&records(&[record_json(8, 0, "ok")])).await;
    }
    assert!(daemon.is_silent().await && !daemon.child.is_finished());
    daemon.go().await.expect("the child ends without an error");
}

#[tokio::test(start_paused = true)]
async fn protocol_violation_is_an_error() {
    let says: [&[Value]; 4] = [
        &[json!({"action": "dance"})],
        &[records(&[])],
        &[stored(None)],
        &[
            json!({"action": "initialize", "shardId": "shardId-0", "sequenceNumber": "LATEST"}),
            json!({"action": "processRecords", "records": [{"data": "!", "sequenceNumber": "1"}]}),
        ],
    ];
    for messages in says {
        let mut daemon = Daemon::start(
            &Script::default(),
            &dead_letter::Memory::new(),
            Pipeline::default(),
        );
        for message in messages {
            daemon.say(message).await;
        }
        let ended = timeout(Duration::from_secs(600), &mut daemon.child).await;
        let ended = ended.expect("the child ends").expect("no panic");
        assert!(
            matches!(ended, Err(MultiLangError::Protocol(_))),
            "{messages:?}: {ended:?}"
        );
    }
    let daemon = Daemon::start(
        &Script::default(),
        &dead_letter::Memory::new(),
        Pipeline::default(),
    );
    daemon.go().await.expect("no message was sent");
}

#[tokio::test(start_paused = true)]
async fn messages_of_an_older_daemon_are_understood() {
    let (script, letters) = (Script::default(), dead_letter::Memory::new());
    let shutdown = |reason: &str| json!({"action": "shutdown", "reason": reason});
    for reason in ["TERMINATE", "SHARD_END"] {
        let mut daemon = Daemon::begun(&script, &letters, Pipeline::default()).await;
        daemon.say(&records(&[record_json(1, 0, "fail,ok")])).await;
        assert_eq!(daemon.hear().await, status("processRecords"));
        daemon.say(&shutdown(reason)).await;
        assert_eq!(daemon.hear().await["sequenceNumber"], Value::Null);
        daemon.say(&stored(None)).await;
        assert_eq!(daemon.hear().await, status("shutdown"));
        daemon.go().await.expect("the child ends without an error");
    }
    for reason in ["ZOMBIE", "LEASE_LOST"] {
        let mut daemon = Daemon::begun(&script, &letters, Pipeline::default()).await;
        daemon.say(&shutdown(reason)).await;
        assert_eq!(daemon.hear().await, status("shutdown"), "no checkpoint is sent");
        daemon.go().await.expect("the child ends without an error");
    }
    // An unknown reason is an error, not the end of the shard.
    let mut daemon = Daemon::begun(&script, &letters, Pipeline::default()).await;
    daemon.say(&shutdown("BOREDOM")).await;
    let ended = timeout(Duration::from_secs(600), &mut daemon.child).await;
    let ended = ended.expect("the child ends").expect("no panic");
    assert!(matches!(ended, Err(MultiLangError::Protocol(_))), "{ended:?}");
}
