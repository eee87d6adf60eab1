//! Tests of the command on LocalStack: dead letters of each sink are listed and replayed, also after a kill.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead as _, BufReader};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName;
use redrive::dead_letter::{self, DeadLetter, DeadLetterSink};
use redrive::replay::{DeadLetterSource, for_each_letter, source};
use redrive::testing::kinesis::{self, KinesisServer};
use redrive::testing::sinks::{confirmed, letter};
use redrive::{Consumer, DeadLetterId, Record, Resilient, checkpoint, processor_with};
use serde_json::{Value, json};
use support::emulator::{repository, unique};
use support::localstack::LocalStack;
use support::proxy::{Fault, Proxy};
use support::stream;
use support::waiting::{eventually, finished};
use tempfile::TempDir;

/// The number of dead letters that are written to a sink and replayed. Two requests' worth, so that a kill between
/// the two leaves some.
fn volume() -> u64 {
    support::volume(1_000, 5_000)
}

/// No more than ten dead letters of a key: a FIFO queue shows no more of a group at once.
const LETTERS_OF_A_KEY: u64 = 10;

/// Dead letters in some storage, and a stream for their records.
struct Scene {
    endpoint: String,
    folder: TempDir,
    stream: String,
    letters: Vec<DeadLetter>,
    address: String,
    keeps_order: bool,
    /// The FIFO queue that has the dead letters, if they are in one.
    fifo: Option<(aws_sdk_sqs::Client, String)>,
}

impl Scene {
    async fn new() -> Option<Self> {
        let endpoint = LocalStack::shared()?.endpoint().to_owned();
        let stream = unique("orders");
        let client = kinesis::client(&endpoint);
        kinesis::create_stream(&client, &stream, 2)
            .await
            .expect("a stream");
        let letters = (0..volume())
            .map(|i| {
                letter(
                    i,
                    Some(&format!("k{}", i % (volume() / LETTERS_OF_A_KEY))),
                    format!("order {i}"),
                )
            })
            .collect();
        Some(Scene {
            endpoint,
            folder: tempfile::tempdir().expect("a folder"),
            stream,
            letters,
            address: String::new(),
            keeps_order: true,
            fifo: None,
        })
    }

    fn kinesis(&self) -> aws_sdk_kinesis::Client {
        kinesis::client(&self.endpoint)
    }

    /// Writes the dead letters, and checks that reading returns the same ones.
    async fn fill(&mut self, address: String, sink: &dyn DeadLetterSink, source: Box<dyn DeadLetterSource>) {
        for letters in self.letters.chunks(500) {
            confirmed(sink.put(letters).await);
        }
        let mut source = source;
        self.keeps_order = source.keeps_order();
        self.address = address;
        let mut read: HashMap<DeadLetterId, DeadLetter> = HashMap::new();
        let reading = for_each_letter(&mut *source, |place, letter| {
            let letter = letter.unwrap_or_else(|error| panic!("{place}: {error}"));
            read.insert(letter.id, letter);
            ControlFlow::Continue(())
        });
        reading.await.expect("it is read");
        assert_eq!(read.len(), self.letters.len());
        for letter in &self.letters {
            assert_eq!(read.get(&letter.id), Some(letter));
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_redrive"));
        command
            .args(arguments)
            .env_clear()
            .env("AWS_ENDPOINT_URL", &self.endpoint)
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .env("XDG_STATE_HOME", self.folder.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("it runs")
    }

    fn replay(&self, more: &[&str]) -> Vec<String> {
        let arguments = [
            "replay",
            &self.address,
            "--to-stream",
            &self.stream,
            "--yes",
            "--json",
        ];
        arguments
            .iter()
            .chain(more)
            .map(|text| (*text).to_owned())
            .collect()
    }

    /// The report of a run to the end.
    fn replay_to_the_end(&self) -> BTreeMap<String, u64> {
        let arguments = self.replay(&["--rate", "100000"]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = self.run(&arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let last = String::from_utf8(output.stdout).expect("text");
        let last: Value = serde_json::from_str(last.lines().last().expect("a report")).expect("JSON");
        let report: BTreeMap<String, u64> = serde_json::from_value(last["report"].clone()).expect("counts");
        let code = if report["hidden"] + report["blocked"] == 0 {
            0
        } else {
            3
        };
        assert_eq!(output.status.code(), Some(code), "{said}");
        report
    }

    /// Kills a run once it has replayed `after` dead letters.
    fn replay_and_kill(&self, after: usize) {
        let arguments = self.replay(&["--rate", "1000"]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut child = self
            .command(&arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it runs");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let done = lines
            .map(|line| line.expect("a line"))
            .filter(|line| line.contains("\"replayed\""));
        assert_eq!(done.take(after).count(), after, "it ended before it was killed");
        child.kill().expect("it was still running");
        child.wait().expect("it is gone");
    }

    /// Runs a consumer, and returns the payloads that it processed, by key and in order.
    async fn consumed(&self) -> BTreeMap<String, Vec<String>> {
        let seen: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
        let note =
            async |seen: Arc<Mutex<Vec<(String, String)>>>, record: Record| -> Result<(), std::io::Error> {
                let key = record.partition_key().expect("a key").to_owned();
                let payload = String::from_utf8(record.payload().to_vec()).expect("text");
                seen.lock().expect("not poisoned").push((key, payload));
                Ok(())
            };
        let orders = Resilient::builder("billing", processor_with(seen.clone(), note))
            .dead_letters(dead_letter::Memory::new())
            .build()
            .expect("complete");
        let consumer = Consumer::builder(self.kinesis(), self.stream.as_str())
            .checkpoints(checkpoint::Memory::new())
            .build()
            .expect("complete");
        let there = stream::read(&self.kinesis(), &self.stream).await.len();
        let all = {
            let seen = seen.clone();
            async move {
                eventually("all is consumed", || {
                    seen.lock().expect("not poisoned").len() >= there
                })
                .await
            }
        };
        finished("the consumer", consumer.run_until(orders, all))
            .await
            .expect("it ends");
        let mut by_key: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (key, payload) in seen.lock().expect("not poisoned").drain(..) {
            by_key.entry(key).or_default().push(payload);
        }
        by_key
    }

    /// Checks that nothing is lost, that at most `most_repeats` records were put again, and that the first
    /// copies are in order.
    fn check(&self, consumed: &BTreeMap<String, Vec<String>>, most_repeats: u64) {
        let mut repeats = 0;
        let mut expected: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for letter in &self.letters {
            let payload = String::from_utf8(letter.payload.to_vec()).expect("text");
            expected
                .entry(letter.partition_key.as_deref().expect("a key"))
                .or_default()
                .push(payload);
        }
        assert_eq!(consumed.len(), expected.len());
        for (key, payloads) in consumed {
            let mut seen = HashSet::new();
            let mut firsts: Vec<&String> = payloads.iter().filter(|payload| seen.insert(*payload)).collect();
            repeats += (payloads.len() - firsts.len()) as u64;
            let mut expected: Vec<&String> = expected[&**key].iter().collect();
            if !self.keeps_order {
                firsts.sort();
                expected.sort();
            }
            assert_eq!(firsts, expected, "of {key}");
        }
        assert!(
            repeats <= most_repeats,
            "{repeats} repeats, {most_repeats} explained"
        );
        println!(
            "{}: {repeats} repeated, {most_repeats} said to be maybe",
            self.address
        );
    }

    /// Repeats the replay until the messages that a killed run has hidden are visible and replayed.
    async fn replay_until_nothing_is_hidden(&self) -> BTreeMap<String, u64> {
        let mut all: BTreeMap<String, u64> = BTreeMap::new();
        loop {
            let report = self.replay_to_the_end();
            let hidden = report["hidden"] + report["blocked"];
            for (what, count) in report {
                *all.entry(what).or_default() += count;
            }
            if hidden == 0 {
                return all;
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }

    /// Waits until all messages of a FIFO queue are visible. LocalStack makes the messages of a group visible
    /// one by one, in any order, and delivers them meanwhile (`_put_message` of its `FifoQueue`). SQS delivers
    /// no message of a group while one of them is hidden.
    async fn wait_for_whole_groups(&self) {
        let Some((client, url)) = &self.fifo else { return };
        let hidden = QueueAttributeName::ApproximateNumberOfMessagesNotVisible;
        let all_are_shown = async {
            loop {
                let call = client
                    .get_queue_attributes()
                    .queue_url(url)
                    .attribute_names(hidden.clone());
                let counts = call.send().await.expect("GetQueueAttributes").attributes;
                if counts.expect("attributes")[&hidden] == "0" {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        finished("all messages are shown", all_are_shown).await;
    }

    /// Replays with a kill in the middle, and checks that nothing is left to do afterwards.
    async fn drive(&self) {
        self.replay_and_kill(self.letters.len() * 3 / 10);
        self.wait_for_whole_groups().await;
        let report = finished("the replay", self.replay_until_nothing_is_hidden()).await;
        assert_eq!(
            report["unreadable"] + report["refused"] + report["unsettled"],
            0,
            "{report:?}"
        );
        self.check(&self.consumed().await, report["possibly_repeated"]);
        let report = self.replay_to_the_end();
        assert_eq!(report["replayed"], 0, "{report:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_and_back() {
    let Some(mut scene) = Scene::new().await else {
        return;
    };
    let path = scene.folder.path().join("letters.jsonl");
    let sink = dead_letter::File::open(&path).expect("it opens");
    let source = source::File::new(&path);
    scene
        .fill(format!("file:{}", path.display()), &sink, Box::new(source))
        .await;
    scene.drive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_and_back() {
    let Some(mut scene) = Scene::new().await else {
        return;
    };
    let client = scene.kinesis();
    let dlq = unique("orders-dlq");
    kinesis::create_stream(&client, &dlq, 2).await.expect("a stream");
    let sink = dead_letter::Kinesis::new(client.clone(), &dlq);
    let source = source::Kinesis::new(client, &dlq);
    scene
        .fill(format!("kinesis:{dlq}"), &sink, Box::new(source))
        .await;
    scene.drive().await;
}

async fn queue(scene: &Scene, fifo: bool) -> (aws_sdk_sqs::Client, String) {
    let client = support::local_client!(aws_sdk_sqs, &scene.endpoint);
    let name = unique("orders-dlq") + if fifo { ".fifo" } else { "" };
    let mut call = client.create_queue().queue_name(&name);
    if fifo {
        call = call.attributes(QueueAttributeName::FifoQueue, "true");
    }
    let url = call.send().await.expect("CreateQueue").queue_url.expect("a URL");
    (client, url)
}

/// Names a standard queue by its name, and a FIFO queue by its URL.
async fn through_a_queue(fifo: bool) {
    let Some(mut scene) = Scene::new().await else {
        return;
    };
    let (client, url) = queue(&scene, fifo).await;
    scene.fifo = fifo.then(|| (client.clone(), url.clone()));
    let sink = dead_letter::Sqs::new(client.clone(), &url);
    let source = source::Sqs::new(client, &url);
    let address = match fifo {
        true => &*url,
        false => url.rsplit('/').next().expect("a name"),
    };
    scene
        .fill(format!("sqs:{address}"), &sink, Box::new(source))
        .await;
    scene.drive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_and_back() {
    through_a_queue(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifo_queue_and_back() {
    through_a_queue(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_with_a_queue_and_back() {
    let Some(mut scene) = Scene::new().await else {
        return;
    };
    let (client, url) = queue(&scene, false).await;
    let topics = support::local_client!(aws_sdk_sns, &scene.endpoint);
    let topic = topics
        .create_topic()
        .name(unique("orders-dlq"))
        .send()
        .await
        .expect("CreateTopic");
    let topic = topic.topic_arn.expect("an ARN");
    let arn = client
        .get_queue_attributes()
        .queue_url(&url)
        .attribute_names(QueueAttributeName::QueueArn)
        .send()
        .await
        .expect("GetQueueAttributes");
    let arn = &arn.attributes.expect("attributes")[&QueueAttributeName::QueueArn];
    // Without raw delivery: the letters are wrapped.
    let subscribed = topics
        .subscribe()
        .topic_arn(&topic)
        .protocol("sqs")
        .endpoint(arn)
        .send()
        .await;
    subscribed.expect("Subscribe");
    let sink = dead_letter::Sns::new(topics, &topic);
    let source = source::Sqs::new(client, &url);
    scene.fill(format!("sqs:{url}"), &sink, Box::new(source)).await;
    scene.drive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_and_back() {
    let Some(mut scene) = Scene::new().await else {
        return;
    };
    let client = support::local_client!(aws_sdk_s3, &scene.endpoint, force_path_style);
    let bucket = unique("orders-dlq");
    client
        .create_bucket()
        .bucket(&bucket)
        .send()
        .await
        .expect("CreateBucket");
    let sink = dead_letter::S3::new(client.clone(), &bucket).prefix("letters/");
    let source = source::S3::new(client, &bucket).prefix("letters/");
    scene
        .fill(format!("s3:{bucket}/letters/"), &sink, Box::new(source))
        .await;
    scene.drive().await;
}

/// Checks that records that a killed run had put, and not recorded in the ledger, are put again and reported.
#[tokio::test(flavor = "multi_thread")]
async fn kill_before_the_ledger_write_repeats_at_most_one_batch() {
    let server = KinesisServer::start().await.expect("a free port");
    let client = server.client();
    kinesis::create_stream(&client, "orders", 2)
        .await
        .expect("a stream");
    let proxy = Proxy::start(server.endpoint()).await.expect("a free port");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("letters.jsonl");
    let letters: Vec<_> = (0..2_000)
        .map(|i| letter(i, Some(&format!("k{i}")), format!("order {i}")))
        .collect();
    confirmed(
        dead_letter::File::open(&path)
            .expect("it opens")
            .put(&letters)
            .await,
    );
    let scene = Scene {
        endpoint: proxy.endpoint().to_owned(),
        folder,
        stream: "orders".to_owned(),
        letters,
        address: format!("file:{}", path.display()),
        keeps_order: true,
        fifo: None,
    };
    let arguments = scene.replay(&["--rate", "100000"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let child: Arc<Mutex<Option<Child>>> = Arc::default();
    let killed = child.clone();
    proxy.script(move |call| match (&*call.target, call.number) {
        ("PutRecords", 3) => {
            let killed = killed.clone();
            // The server has the records by then.
            Fault::Rewrite(Box::new(move |_| {
                let mut child = killed.lock().expect("not poisoned");
                child.as_mut().expect("it runs").kill().expect("it is killed");
            }))
        }
        _ => Fault::None,
    });
    let mut command = scene.command(&arguments);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut start = || {
        // Held while it starts, so that it is there to be killed.
        let mut running = child.lock().expect("not poisoned");
        *running = Some(command.spawn().expect("it runs"));
    };
    start();
    eventually("it is killed", || {
        let mut child = child.lock().expect("not poisoned");
        child
            .as_mut()
            .is_some_and(|child| child.try_wait().expect("a state").is_some())
    })
    .await;
    proxy.script(|_| Fault::None);
    let report = scene.replay_to_the_end();
    assert_eq!(
        (
            report["already_replayed"],
            report["replayed"],
            report["possibly_repeated"]
        ),
        (1_000, 1_000, 500),
        "{report:?}"
    );
    let sent = stream::read(&client, "orders").await;
    assert_eq!(sent.len(), 2_500);
    let distinct: HashSet<_> = sent.iter().map(|sent| &sent.data).collect();
    assert_eq!(distinct.len(), 2_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_letter_stays_in_the_queue_and_is_spoken_of() {
    let Some(mut scene) = Scene::new().await else {
        return;
    };
    let (client, url) = queue(&scene, false).await;
    scene.address = format!("sqs:{url}");
    let stream = scene.stream.clone();
    let bucket = unique("payloads");
    let payloads = format!("s3:{bucket}");
    let replay = [
        "replay",
        &*scene.address,
        "--to-stream",
        &*stream,
        "--payloads-from",
        &payloads,
    ];
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();

    let empty = scene.run(&[&replay[..], &["--yes"]].concat());
    assert_eq!(empty.status.code(), Some(0), "{}", text(&empty.stderr));
    assert!(
        text(&empty.stdout).contains("nothing to replay"),
        "{}",
        text(&empty.stdout)
    );

    let s3 = support::local_client!(aws_sdk_s3, &scene.endpoint, force_path_style);
    s3.create_bucket()
        .bucket(&bucket)
        .send()
        .await
        .expect("CreateBucket");
    let payloads = dead_letter::S3::new(s3.clone(), &bucket);
    let sink = dead_letter::ClaimCheck::new(dead_letter::Sqs::new(client.clone(), &url), payloads).over(100);
    let small = letter(1, Some("a"), "small");
    let large = letter(2, Some("b"), vec![b'x'; 5_000]);
    let lost = letter(3, Some("c"), vec![b'y'; 5_000]);
    confirmed(sink.put(&[small.clone(), large.clone(), lost.clone()]).await);
    let objects = s3
        .list_objects_v2()
        .bucket(&bucket)
        .send()
        .await
        .expect("ListObjectsV2");
    for object in objects.contents() {
        let key = object.key().expect("a key");
        if key.contains(&lost.id.to_string()) {
            s3.delete_object()
                .bucket(&bucket)
                .key(key)
                .send()
                .await
                .expect("DeleteObject");
        }
    }
    let newer = text(&letter(4, Some("d"), "new").to_json_line())
        .replace("\"schema_version\":1", "\"schema_version\":2");
    let torn = text(&letter(5, Some("e"), "torn").to_json_line());
    let left = ["{\"an\":\"order\"}", &*newer, &torn[..torn.len() / 2], "no json"];
    for body in left {
        client
            .send_message()
            .queue_url(&url)
            .message_body(body)
            .send()
            .await
            .expect("SendMessage");
    }

    // The command cannot ask for confirmation.
    let refused = scene.run(&replay);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("--yes"),
        "{}",
        text(&refused.stderr)
    );
    let dry = scene.run(&[&replay[..], &["--dry-run"]].concat());
    assert!(
        text(&dry.stdout).contains("3 would be replayed"),
        "{}",
        text(&dry.stdout)
    );

    let done = scene.run(&[&replay[..], &["--yes"]].concat());
    let (said, complained) = (text(&done.stdout), text(&done.stderr));
    assert_eq!(done.status.code(), Some(3), "{said}{complained}");
    for part in [
        "2 replayed",
        "2 not dead letters of redrive",
        "2 unreadable",
        "1 without a stored payload",
    ] {
        assert!(said.contains(part), "{said}");
    }
    for part in [
        "schema version 2",
        "is no longer at s3://",
        "header cannot be read",
    ] {
        assert!(complained.contains(part), "{complained}");
    }
    assert!(
        !said.contains("order\"") && !complained.contains("order\""),
        "{said}{complained}"
    );
    let sent = stream::read(&scene.kinesis(), &stream).await;
    let mut payloads: Vec<_> = sent.into_iter().map(|sent| sent.data).collect();
    payloads.sort();
    assert_eq!(payloads, [small.payload.to_vec(), large.payload.to_vec()]);

    // All the others are still there, and at once.
    let mut bodies = HashSet::new();
    while bodies.len() < 5 {
        let page = client
            .receive_message()
            .queue_url(&url)
            .max_number_of_messages(10)
            .send()
            .await;
        let page = page.expect("ReceiveMessage").messages.unwrap_or_default();
        assert!(!page.is_empty(), "{bodies:?}");
        bodies.extend(page.into_iter().map(|message| message.body.expect("a body")));
    }
    assert!(left.iter().all(|body| bodies.contains(*body)), "{bodies:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_address_is_an_error_that_says_what_to_do() {
    let Some(scene) = Scene::new().await else { return };
    let none = scene.folder.path().join("none.jsonl").display().to_string();
    for (address, code, part) in [
        ("letters.jsonl", 2, "write file:PATH"),
        ("kinesis:", 2, "kinesis:orders-dlq"),
        (&*format!("file:{none}"), 1, "there is no file"),
        ("sqs:no-such-queue", 1, "check its name"),
        ("kinesis:no-such-stream", 1, "there is no stream"),
        ("s3:no-such-bucket-of-mine", 1, "there is no bucket"),
        ("sns:arn:aws:sns:us-east-1:000000000000:x", 1, "subscribed"),
    ] {
        let output = scene.run(&["list", address]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{address}: {said}");
        assert!(said.contains(part), "{address}: {said}");
    }
    let bad_store = scene.run(&["replay", "file:x", "--to-stream", "y", "--ledger", "replay.redb"]);
    assert_eq!(bad_store.status.code(), Some(2));
    let completions = scene.run(&["completions", "bash"]);
    assert!(String::from_utf8_lossy(&completions.stdout).contains("_redrive()"));
}

#[tokio::test]
async fn list_show_and_stats_hide_confidential_content() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("letters.jsonl");
    let letters: Vec<_> = (0..30)
        .map(|i| letter(i, Some("alice@example.com"), "a secret"))
        .collect();
    confirmed(
        dead_letter::File::open(&path)
            .expect("it opens")
            .put(&letters)
            .await,
    );
    let address = format!("file:{}", path.display());
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_redrive"))
            .args(arguments)
            .output()
            .expect("it runs");
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    };
    let id = letters[7].id.to_string();
    let list = run(&["list", &address]);
    assert_eq!(list.lines().count(), 30);
    let json = run(&["list", &address, "--json", "--limit", "5"]);
    assert_eq!(json.lines().count(), 5);
    let show = run(&["show", &address, &id[..10]]);
    let stats = run(&["stats", &address]);
    let counted: Value = serde_json::from_str(&run(&["stats", &address, "--json"])).expect("JSON");
    assert_eq!(counted["reasons"]["permanent"], 30);
    assert!(stats.contains("NoCustomer") && stats.contains('█'), "{stats}");
    assert!(show.contains("permanent") && show.contains(&id), "{show}");
    for text in [&list, &json, &show, &stats] {
        for secret in ["alice", "a secret", "no such customer"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    let whole = run(&["show", &address, &id[..10], "--payload"]);
    for secret in ["alice@example.com", "a secret", "no such customer"] {
        assert!(whole.contains(secret), "{whole}");
    }
    assert_eq!(run(&["show", &address, &id, "--raw"]), "a secret");
    assert!(run(&["list", &address, "--since", "1h", "--key", "bob"]).is_empty());
}

/// Builds an example and runs it as its module documentation states.
fn example(scene: &Scene, name: &str) -> String {
    // With the features that the tests are built with, so that only the example itself is built.
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--workspace", "--all-features", "--bin", name])
        .current_dir(repository())
        .status();
    assert!(built.expect("cargo runs").success(), "{name} does not build");
    let program = Path::new(env!("CARGO_BIN_EXE_redrive")).with_file_name(name);
    let output = Command::new(program)
        .env("AWS_ENDPOINT_URL", &scene.endpoint)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .output()
        .expect("the example runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complained}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_do_what_they_say() {
    let Some(scene) = Scene::new().await else { return };
    let said = example(&scene, "dead_letters");
    let read = said
        .lines()
        .filter(|line| line.contains("3 dead letters read from"));
    assert_eq!(read.count(), 6, "{said}");
    let said = example(&scene, "redrive_from_lambda");
    assert!(said.contains("billed order 5, replayed 1 time(s)"), "{said}");
    assert!(said.contains("5 records of 1 messages replayed"), "{said}");
}

/// In a queue, from a topic, and as objects of a bucket, which have the records.
#[tokio::test(flavor = "multi_thread")]
async fn what_lambda_gave_up_becomes_letters_and_its_messages_go() {
    let Some(scene) = Scene::new().await else { return };
    let kinesis = scene.kinesis();
    let records = (0..6).map(|i| (format!("k{i}"), format!("order {i}")));
    stream::put(&kinesis, &scene.stream, records).await;
    let sent = stream::read(&kinesis, &scene.stream).await;
    let message = |number: usize| {
        let (place, arn) = (
            &sent[number].place,
            format!("arn:aws:kinesis:us-east-1:000000000000:stream/{}", scene.stream),
        );
        json!({
            "requestContext": {"functionArn": "arn:aws:lambda:us-east-1:000000000000:function:bill", "condition": "RecordAgeExceeded"},
            "KinesisBatchInfo": {
                "shardId": place.shard.as_str(),
                "startSequenceNumber": place.number.as_str(),
                "endSequenceNumber": place.number.as_str(),
                "batchSize": 1,
                "streamArn": arn,
            },
        })
    };
    let (client, url) = queue(&scene, false).await;
    for number in 0..2 {
        client
            .send_message()
            .queue_url(&url)
            .message_body(message(number).to_string())
            .send()
            .await
            .expect("SendMessage");
    }
    let wrapped = json!({"Type": "Notification", "MessageId": "1", "TopicArn": "arn:x", "Message": message(2).to_string()});
    client
        .send_message()
        .queue_url(&url)
        .message_body(wrapped.to_string())
        .send()
        .await
        .expect("SendMessage");
    let mut gone = message(3);
    gone["KinesisBatchInfo"]["shardId"] = "shardId-000000000077".into();
    client
        .send_message()
        .queue_url(&url)
        .message_body(gone.to_string())
        .send()
        .await
        .expect("SendMessage");

    let s3 = support::local_client!(aws_sdk_s3, &scene.endpoint, force_path_style);
    let bucket = unique("failures");
    s3.create_bucket()
        .bucket(&bucket)
        .send()
        .await
        .expect("CreateBucket");
    let event = json!({"Records": [{
        "kinesis": {"partitionKey": "k4", "sequenceNumber": sent[4].place.number.as_str(), "data": "b3JkZXIgNA==", "approximateArrivalTimestamp": 1.5},
        "eventID": format!("{}:{}", sent[4].place.shard, sent[4].place.number),
        "eventSourceARN": format!("arn:aws:kinesis:us-east-1:000000000000:stream/{}", scene.stream),
    }]});
    let mut object = message(4);
    object["payload"] = event.to_string().into();
    let key = "aws/lambda/0f7c/shardId-000000000000/2026/11/28/2026-11-28T09.00.00-1";
    let put = s3
        .put_object()
        .bucket(&bucket)
        .key(key)
        .body(object.to_string().into_bytes().into());
    put.send().await.expect("PutObject");

    let letters = scene.folder.path().join("rehydrated.jsonl");
    let to = format!("file:{}", letters.display());
    let queue = format!("sqs:{url}");
    let rehydrate = ["rehydrate", &queue, "--to-dead-letters", &to, "--yes"];
    // No stream was named: nothing is read with the operator's credentials, and all messages stay.
    let refused = scene.run(&rehydrate);
    assert_eq!(refused.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--from-stream"));
    let from_queue = scene.run(&[&rehydrate[..], &["--from-stream", &scene.stream]].concat());
    let said = String::from_utf8_lossy(&from_queue.stderr).into_owned();
    // One record is gone, and its message stays.
    assert_eq!(from_queue.status.code(), Some(3), "{said}");
    assert!(
        said.contains("is no longer in stream") && said.contains("RecordAgeExceeded"),
        "{said}"
    );
    let from_bucket = scene.run(&[
        "rehydrate",
        &format!("s3:{bucket}"),
        "--to-dead-letters",
        &to,
        "--yes",
    ]);
    assert_eq!(
        from_bucket.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&from_bucket.stderr)
    );

    let read: Vec<DeadLetter> = dead_letter::File::read(&letters)
        .map(|letter| letter.expect("a letter"))
        .collect();
    let mut numbers: Vec<_> = read
        .iter()
        .map(|letter| (letter.sequence_number.clone(), letter.payload.to_vec()))
        .collect();
    numbers.sort();
    let mut expected: Vec<_> = [0, 1, 2, 4]
        .map(|i| (sent[i].place.number.clone(), sent[i].data.clone()))
        .into();
    expected.sort();
    assert_eq!(numbers, expected);
    let left = client
        .receive_message()
        .queue_url(&url)
        .max_number_of_messages(10);
    let left = left
        .send()
        .await
        .expect("ReceiveMessage")
        .messages
        .unwrap_or_default();
    // Maybe twice: a call of the test's own that the SDK has repeated.
    assert!(!left.is_empty());
    for message in left {
        let report = String::from_utf8_lossy(&from_queue.stdout);
        assert_eq!(message.body.expect("a body"), gone.to_string(), "{report}{said}");
    }
    let objects = s3
        .list_objects_v2()
        .bucket(&bucket)
        .send()
        .await
        .expect("ListObjectsV2");
    assert!(objects.contents().is_empty());
}
