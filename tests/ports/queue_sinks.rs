//! Tests of dead letters in SQS and SNS on LocalStack: the sink conformance suite, and tests specific to
//! queues and topics. A topic is read through a subscribed queue.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::{MessageSystemAttributeName, QueueAttributeName};
use redrive::dead_letter::{DeadLetter, DeadLetterSink, SinkError, Sns, SourceStream, Sqs, TargetError};
use redrive::replay::{DeadLetterSource, source};
use redrive::sink_conformance;
use redrive::testing::sinks::{Harness, confirmed, letter};
use support::emulator;
use support::localstack::LocalStack;

fn client(endpoint: &str) -> Client {
    support::local_client!(aws_sdk_sqs, endpoint)
}

fn topics(endpoint: &str) -> aws_sdk_sns::Client {
    support::local_client!(aws_sdk_sns, endpoint)
}

/// Returns a unique name of a queue or a topic.
fn unique(name: &str, is_fifo: bool) -> String {
    emulator::unique(name) + if is_fifo { ".fifo" } else { "" }
}

/// A queue, and the sink that writes to it.
struct Queue {
    client: Client,
    url: String,
    sink: Sqs,
}

impl Queue {
    async fn new(is_fifo: bool, attributes: &[(QueueAttributeName, &str)]) -> Option<Self> {
        let client = client(LocalStack::shared()?.endpoint());
        let mut call = client.create_queue().queue_name(unique("letters", is_fifo));
        if is_fifo {
            call = call.attributes(QueueAttributeName::FifoQueue, "true");
        }
        for (name, value) in attributes {
            call = call.attributes(name.clone(), *value);
        }
        let url = call.send().await.expect("CreateQueue").queue_url.expect("a URL");
        Some(Queue {
            sink: Sqs::new(client.clone(), &url).seed(7),
            client,
            url,
        })
    }

    /// Receives and deletes all messages. Returns each body with its group and its deduplication id.
    async fn messages(&self) -> Vec<(String, Option<String>, Option<String>)> {
        let mut messages = Vec::new();
        loop {
            let page = self
                .client
                .receive_message()
                .queue_url(&self.url)
                .max_number_of_messages(10)
                .message_system_attribute_names(MessageSystemAttributeName::All)
                .send()
                .await
                .expect("ReceiveMessage");
            let page = page.messages.unwrap_or_default();
            if page.is_empty() {
                return messages;
            }
            for message in page {
                let attributes = message.attributes.unwrap_or_default();
                let attribute = |name| attributes.get(&name).cloned();
                messages.push((
                    message.body.expect("a body"),
                    attribute(MessageSystemAttributeName::MessageGroupId),
                    attribute(MessageSystemAttributeName::MessageDeduplicationId),
                ));
                let delete = self.client.delete_message().queue_url(&self.url);
                let delete = delete.set_receipt_handle(message.receipt_handle).send().await;
                delete.expect("DeleteMessage");
            }
        }
    }

    /// Receives and deletes all dead letters.
    async fn letters(&self) -> Vec<DeadLetter> {
        let read = |body: &str| DeadLetter::from_json_line(body.as_bytes()).expect("a letter");
        let messages = self.messages().await;
        messages.iter().map(|(body, ..)| read(body)).collect()
    }
}

impl Harness for Queue {
    type Sink = Sqs;

    fn sink(&self) -> &Sqs {
        &self.sink
    }

    async fn read_back(&self, _is_complete: impl Fn(&[DeadLetter]) -> bool) -> Vec<DeadLetter> {
        self.letters().await
    }

    fn source(&self) -> Option<Box<dyn DeadLetterSource>> {
        Some(Box::new(source::Sqs::new(self.client.clone(), &self.url)))
    }

    /// Base64 adds a third to the payload. Messages of this LocalStack have at most 256 KiB, as those of SQS
    /// had until August 2025.
    fn largest_payload(&self) -> usize {
        180_000
    }
}

/// A topic, a queue that is subscribed to it, and the sink that writes to it.
struct Topic {
    is_fifo: bool,
    sink: Sns,
    queue: Queue,
}

impl Topic {
    async fn new(is_fifo: bool) -> Option<Self> {
        let queue = Queue::new(is_fifo, &[]).await?;
        let client = topics(LocalStack::shared()?.endpoint());
        let mut call = client.create_topic().name(unique("letters", is_fifo));
        if is_fifo {
            call = call.attributes("FifoTopic", "true");
        }
        let topic = call.send().await.expect("CreateTopic").topic_arn.expect("an ARN");
        let attributes = queue.client.get_queue_attributes().queue_url(&queue.url);
        let attributes = attributes
            .attribute_names(QueueAttributeName::QueueArn)
            .send()
            .await;
        let attributes = attributes
            .expect("GetQueueAttributes")
            .attributes
            .expect("attributes");
        client
            .subscribe()
            .topic_arn(&topic)
            .protocol("sqs")
            .endpoint(&attributes[&QueueAttributeName::QueueArn])
            .attributes("RawMessageDelivery", "true")
            .send()
            .await
            .expect("Subscribe");
        Some(Topic {
            is_fifo,
            sink: Sns::new(client, topic).seed(7),
            queue,
        })
    }
}

impl Harness for Topic {
    type Sink = Sns;

    fn sink(&self) -> &Sns {
        &self.sink
    }

    /// Polls the queue, because SNS delivers some time after it has confirmed.
    async fn read_back(&self, is_complete: impl Fn(&[DeadLetter]) -> bool) -> Vec<DeadLetter> {
        let mut letters = Vec::new();
        let give_up = Instant::now() + Duration::from_secs(60);
        let mut is_last_look = false;
        while !is_last_look {
            is_last_look = is_complete(&letters) || Instant::now() > give_up;
            letters.extend(self.queue.letters().await);
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        if !self.is_fifo {
            // A standard topic delivers in any order.
            letters.sort_by_key(|letter| {
                let place = (letter.sequence_number.clone(), letter.sub_sequence_number);
                (place, letter.redrive_count)
            });
        }
        letters
    }

    /// Base64 adds a third to the payload, and a message has at most 256 KiB.
    fn largest_payload(&self) -> usize {
        180_000
    }
}

sink_conformance!(standard, optional Queue::new(false, &[]));
sink_conformance!(fifo, optional Queue::new(true, &[]));
sink_conformance!(topic, optional Topic::new(false));
sink_conformance!(fifo_topic, optional Topic::new(true));

#[tokio::test]
async fn fifo_queue_uses_the_partition_key_as_group() {
    let Some(queue) = Queue::new(true, &[]).await else {
        return;
    };
    let long = "k".repeat(129);
    let keys = [
        Some("customer-1"),
        Some("a b"),
        Some(""),
        Some("grün"),
        Some(long.as_str()),
        None,
    ];
    let letters: Vec<DeadLetter> = (0..)
        .zip(keys)
        .map(|(number, key)| letter(number, key, "x"))
        .collect();
    confirmed(queue.sink.put(&letters).await);
    let messages = queue.messages().await;
    assert_eq!(messages.len(), keys.len());
    let mut groups = BTreeMap::new();
    for (body, group, id) in messages {
        let letter = DeadLetter::from_json_line(body.as_bytes()).expect("a letter");
        assert!(id.is_some_and(|id| id.starts_with(&letter.id.to_string()) && id.len() <= 128));
        groups.insert(letter.partition_key.clone(), (group.expect("a group"), letter));
    }
    assert_eq!(groups[&Some("customer-1".to_owned())].0, "customer-1");
    let (group, letter) = &groups[&None];
    assert_eq!(*group, letter.id.to_string());
    for key in ["a b", "", "grün", &long] {
        let group = &groups[&Some(key.to_owned())].0;
        assert!(
            group.len() == 64 && group.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{group}"
        );
    }
    let different: HashSet<&String> = groups.values().map(|(group, _)| group).collect();
    assert_eq!(different.len(), keys.len());
}

/// SQS drops messages with a known deduplication id for 5 minutes, even if the first message was deleted.
#[tokio::test]
async fn fifo_queue_takes_the_same_dead_letter_again() {
    let Some(queue) = Queue::new(true, &[]).await else {
        return;
    };
    let letters = [letter(1, Some("a"), "x"), letter(2, Some("b"), "y")];
    for _ in 0..2 {
        confirmed(queue.sink.put(&letters).await);
        // This call reads and deletes the messages.
        assert_eq!(queue.letters().await, letters);
    }
    // A process with the same seed uses other deduplication ids.
    let again = Sqs::new(queue.client.clone(), &queue.url).seed(7);
    confirmed(again.put(&letters).await);
    assert_eq!(queue.letters().await, letters);
}

#[tokio::test]
async fn fifo_topic_delivers_the_same_dead_letter_again() {
    let Some(topic) = Topic::new(true).await else {
        return;
    };
    let one = [letter(1, Some("a"), "x")];
    for _ in 0..2 {
        confirmed(topic.sink.put(&one).await);
        assert_eq!(topic.read_back(|read| !read.is_empty()).await, one);
    }
}

/// SQS does not accept every Unicode character.
#[tokio::test]
async fn characters_that_xml_forbids_are_escaped() {
    let Some(queue) = Queue::new(false, &[]).await else {
        return;
    };
    let key = "\u{0}\u{1f}\u{7f}\u{85}\u{fffe}\u{ffff}\u{d7ff}\u{e000}\u{10ffff}";
    let letters = [letter(1, Some(key), "\u{fffe}\u{ffff}")];
    confirmed(queue.sink.put(&letters).await);
    let messages = queue.messages().await;
    let legal = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
    assert!(messages[0].0.chars().all(legal), "{:?}", messages[0].0);
    let read = DeadLetter::from_json_line(messages[0].0.as_bytes()).expect("a letter");
    assert_eq!(read, letters[0]);
}

#[tokio::test]
async fn oversized_dead_letter_is_refused_and_blocks_no_other_key() {
    let limit = [(QueueAttributeName::MaximumMessageSize, "20000")];
    let Some(queue) = Queue::new(false, &limit).await else {
        return;
    };
    let letters = [
        letter(1, Some("a"), "x"),
        letter(2, Some("b"), vec![b'x'; 20_000]),
        letter(3, Some("b"), "x"),
        letter(4, Some("c"), vec![b'x'; 10_000]),
    ];
    let results = queue.sink.put(&letters).await;
    assert!(results[0].is_ok() && results[3].is_ok(), "{results:?}");
    let Err(SinkError::Refused { size, limit, .. }) = &results[1] else {
        panic!("{results:?}");
    };
    assert_eq!(*limit, 20_000);
    assert_eq!(*size, letters[1].to_json_line().len() as u64);
    assert!(matches!(results[2], Err(SinkError::Behind)), "{results:?}");
    assert_eq!(queue.messages().await.len(), 2);
}

#[tokio::test]
async fn unsafe_queue_settings_are_warnings_with_a_remedy() {
    let Some(queue) = Queue::new(true, &[(QueueAttributeName::MaximumMessageSize, "100000")]).await else {
        return;
    };
    let source = SourceStream::new("orders");
    let warnings = queue.sink.check(&source).await.expect("the queue exists");
    let remedies: Vec<&str> = warnings.iter().map(|warning| &*warning.remedy).collect();
    let set = |attribute: &str| {
        format!(
            "aws sqs set-queue-attributes --queue-url {} --attributes {attribute}",
            queue.url
        )
    };
    assert_eq!(
        remedies,
        [
            set("MessageRetentionPeriod=1209600"),
            set("MaximumMessageSize=1048576")
        ]
    );
    assert!(warnings[0].message.contains("96 hours"), "{warnings:?}");

    let mended = queue
        .client
        .set_queue_attributes()
        .queue_url(&queue.url)
        .attributes(QueueAttributeName::MessageRetentionPeriod, "1209600");
    mended.send().await.expect("SetQueueAttributes");
    let left = queue.sink.check(&source).await.expect("the queue exists");
    assert_eq!(left.len(), 1, "{left:?}");

    let none = Sqs::new(queue.client.clone(), format!("{}-other", queue.url));
    let error = none.check(&source).await.expect_err("the queue does not exist");
    assert!(matches!(error, TargetError::Unreachable { .. }), "{error:?}");
}

/// The queue does not exist, so the sink confirms nothing.
#[tokio::test]
async fn missing_queue_confirms_nothing() {
    let Some(localstack) = LocalStack::shared() else {
        return;
    };
    let client = client(localstack.endpoint());
    let sink = Sqs::new(client, format!("{}/000000000000/none", localstack.endpoint()));
    let results = sink
        .put(&[letter(1, Some("a"), "x"), letter(2, Some("a"), "y")])
        .await;
    let [Err(SinkError::Unavailable(_)), Err(_)] = &results[..] else {
        panic!("{results:?}");
    };
}

/// SNS drops a confirmed message of a topic without subscription.
#[tokio::test]
async fn topic_without_a_subscription_is_an_error() {
    let Some(localstack) = LocalStack::shared() else {
        return;
    };
    let client = topics(localstack.endpoint());
    let created = client
        .create_topic()
        .name(unique("unsubscribed", false))
        .send()
        .await;
    let topic = created.expect("CreateTopic").topic_arn.expect("an ARN");
    let source = SourceStream::new("orders");
    let error = Sns::new(client.clone(), &topic).check(&source).await;
    let error = error.expect_err("dead letters would be lost");
    assert!(matches!(error, TargetError::NobodyListens { .. }), "{error:?}");
    assert!(error.to_string().contains("subscribe"), "{error}");

    let Some(listened) = Topic::new(false).await else {
        return;
    };
    let warnings = listened
        .sink
        .check(&source)
        .await
        .expect("the topic has a subscription");
    assert!(warnings[0].message.contains("262144 bytes"), "{warnings:?}");

    let none = Sns::new(client, format!("{topic}-other")).check(&source).await;
    assert!(matches!(none, Err(TargetError::Unreachable { .. })), "{none:?}");
}

#[tokio::test]
async fn oversized_dead_letter_for_a_topic_is_refused() {
    let Some(topic) = Topic::new(false).await else {
        return;
    };
    let letters = [
        letter(1, Some("a"), vec![b'x'; 200_000]),
        letter(2, Some("b"), vec![b'x'; 150_000]),
    ];
    let results = topic.sink.put(&letters).await;
    assert!(
        matches!(
            results[..],
            [Err(SinkError::Refused { limit: 262_144, .. }), Ok(_)]
        ),
        "{results:?}"
    );
    assert_eq!(topic.read_back(|read| !read.is_empty()).await, letters[1..]);
}
