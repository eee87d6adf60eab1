//! Enhanced fan-out: the simulated Kinesis pushes the records of a shard in a response body that lasts for
//! minutes.

use std::collections::HashMap;
use std::future::pending;
use std::time::Duration;

use aws_smithy_eventstream::frame::write_message_to;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::event_stream::{Header, HeaderValue, Message};
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use rand::RngExt;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::fault::Fault;
use super::kinesis::{Page, Refusal};
use super::world::{GAP, State, World, number_ahead_of, shard_id};

/// The maximum duration of a subscription, in seconds (SubscribeToShard, Kinesis API reference).
const LIFE: u64 = 5 * 60;
/// The time for which a second call for the same shard is refused (SubscribeToShard, Kinesis API reference).
const IN_USE: Duration = Duration::from_secs(5);
/// The time until a registered consumer is active.
const CREATING: Duration = Duration::from_secs(2);

/// The errors that the service may send in place of an event.
const FAILURES: [&str; 4] = [
    "InternalFailureException",
    "KMSThrottlingException",
    "ResourceInUseException",
    "KMSAccessDeniedException",
];

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The time of the consumer's registration, and the time of the last subscription to each shard.
#[derive(Default)]
pub struct Subscriptions {
    registered: Option<Duration>,
    since: HashMap<usize, Duration>,
}

impl Subscriptions {
    /// Starts a subscription to a shard. It ends an earlier subscription to the same shard.
    pub fn subscribe(&mut self, shard: usize, now: Duration) -> Result<(), Refusal> {
        if self.registered.is_none_or(|at| now < at + CREATING) {
            return Err((400, "ResourceNotFoundException"));
        }
        if self.since.get(&shard).is_some_and(|since| now < *since + IN_USE) {
            return Err((400, "ResourceInUseException"));
        }
        self.since.insert(shard, now);
        Ok(())
    }
}

impl State {
    pub fn register(&mut self) -> Result<Value, Refusal> {
        if self.subscriptions.registered.is_some() {
            return Err((400, "ResourceInUseException"));
        }
        self.subscriptions.registered = Some(self.now());
        let mut consumer = self.describe_consumer()?;
        Ok(json!({"Consumer": consumer["ConsumerDescription"].take()}))
    }

    pub fn describe_consumer(&self) -> Result<Value, Refusal> {
        let registered = self.subscriptions.registered;
        let registered = registered.ok_or((400, "ResourceNotFoundException"))?;
        let active = self.now() >= registered + CREATING;
        Ok(json!({"ConsumerDescription": {
            "ConsumerName": "billing",
            "ConsumerARN": "arn:aws:kinesis:us-east-1:000000000000:stream/orders/consumer/billing:1",
            "ConsumerStatus": if active { "ACTIVE" } else { "CREATING" },
            "ConsumerCreationTimestamp": 1_700_000_000,
        }}))
    }
}

/// Returns the description of an accepted subscription, which [`begin`] reads.
pub fn accepted(shard: usize, first: usize, since: Duration) -> Value {
    json!({"shard": shard, "first": first, "since": since.as_nanos() as u64})
}

/// Answers an accepted subscription, and starts the task that pushes its events.
pub fn begin(world: World, accepted: &Value) -> HttpResponse {
    let number = |name: &str| accepted[name].as_u64().unwrap_or_default();
    let (body, channel) = Channel::<Bytes, BoxError>::new(1);
    let pusher = Pusher {
        world,
        shard: number("shard") as usize,
        next: number("first") as usize,
        since: Duration::from_nanos(number("since")),
        body,
    };
    // Most subscriptions end early, so that a simulation meets many ends.
    let life = Duration::from_secs(pusher.world.state().timing.random_range(5..=LIFE));
    tokio::spawn(async move {
        // The subscription ends even if the consumer has not read all of it.
        let _ = timeout(life, pusher.run()).await;
    });
    let ok = StatusCode::try_from(200).expect("200 is a valid status");
    // The SDK polls the body again after its end.
    HttpResponse::new(ok, SdkBody::from_body_1_x(channel.fuse()))
}

struct Pusher {
    world: World,
    shard: usize,
    /// The index of the next record.
    next: usize,
    since: Duration,
    body: Sender<Bytes, BoxError>,
}

/// The end of a subscription: no more events are sent.
struct Over;

impl Pusher {
    async fn run(mut self) -> Result<(), Over> {
        if self.world.strikes(Fault::SubscriptionEmpty) {
            return Ok(());
        }
        self.send(frame("event", "initial-response", &json!({}))).await?;
        let mut behind = true;
        loop {
            let pause = match behind {
                true => 1..40,
                false => 50..3_000,
            };
            let pause = self.world.state().timing.random_range(pause);
            sleep(Duration::from_millis(pause)).await;
            self.world.contact("pushes", self.shard, self.next).await;
            self.fail().await?;
            let is_gone = self.world.plan().is_gone(self.world.now());
            if is_gone || self.world.is_down(Fault::KinesisOutage) {
                return self.abort("connection reset");
            }
            let most = self.world.plan().page as usize;
            let page = Page::of(&self.world, self.shard, self.next, most);
            self.next = page.end;
            behind = page.behind > 0;
            let is_empty = page.records.is_empty();
            let mut pushed = json!({"Records": page.records, "MillisBehindLatest": page.behind});
            if page.is_last {
                pushed["ChildShards"] = self.children();
                // A member without a value may be left out, or `null`.
                if self.world.state().timing.random_bool(0.5) {
                    pushed["ContinuationSequenceNumber"] = Value::Null;
                }
            } else {
                pushed["ContinuationSequenceNumber"] = self.continuation(is_empty).into();
            }
            let frame = frame("event", "SubscribeToShardEvent", &pushed);
            if self.world.strikes(Fault::SubscriptionBroken) {
                self.send(frame.slice(..frame.len() / 2)).await?;
                return self.abort("connection reset");
            }
            if self.world.strikes(Fault::Garbled) {
                let mut garbled = frame.to_vec();
                garbled[frame.len() / 2] ^= 1;
                return self.send(garbled.into()).await;
            }
            self.send(frame).await?;
            if page.is_last {
                return Err(Over);
            }
        }
    }

    /// Injects the faults before the next event.
    async fn fail(&mut self) -> Result<(), Over> {
        let world = &self.world;
        if world.strikes(Fault::SubscriptionSilent) {
            return pending().await;
        }
        if world.strikes(Fault::Deregistered) {
            world.state().subscriptions.registered = None;
        }
        let error = {
            let subscriptions = &world.state().subscriptions;
            if subscriptions.registered.is_none() {
                Some("ResourceNotFoundException")
            } else if subscriptions.since.get(&self.shard) != Some(&self.since) {
                Some("ResourceInUseException")
            } else {
                None
            }
        };
        let error = match error {
            None if world.strikes(Fault::SubscriptionFailed) => {
                let which = world.state().timing.random_range(0..FAILURES.len());
                Some(FAILURES[which])
            }
            error => error,
        };
        if let Some(error) = error {
            self.send(frame("exception", error, &json!({"message": "simulated"})))
                .await?;
            return Err(Over);
        }
        Ok(())
    }

    /// Returns the continuation sequence number: at or after the last pushed record, and before the next.
    fn continuation(&self, is_empty: bool) -> String {
        let ahead = match is_empty {
            true => self.world.state().timing.random_range(1..=GAP),
            false => GAP,
        };
        number_ahead_of(self.next, ahead).as_str().to_owned()
    }

    fn children(&self) -> Value {
        let shards = self.world.plan().shards.iter().enumerate();
        let children = shards.filter(|(_, shard)| shard.parents.contains(&self.shard));
        let children = children.map(|(index, child)| {
            let parents: Vec<String> = child.parents.iter().map(|parent| shard_id(*parent)).collect();
            json!({
                "ShardId": shard_id(index),
                "ParentShards": parents,
                "HashKeyRange": {
                    "StartingHashKey": child.first_key.to_string(),
                    "EndingHashKey": child.last_key.to_string(),
                },
            })
        });
        children.collect()
    }

    async fn send(&mut self, frame: Bytes) -> Result<(), Over> {
        self.body.send_data(frame).await.map_err(|_| Over)
    }

    fn abort(self, why: &str) -> Result<(), Over> {
        self.body.abort(why.into());
        Err(Over)
    }
}

/// Encodes a message of an event stream.
fn frame(kind: &'static str, name: &'static str, payload: &Value) -> Bytes {
    let text = |text: &'static str| HeaderValue::String(text.into());
    let message = Message::new(payload.to_string())
        .add_header(Header::new(":message-type", text(kind)))
        .add_header(Header::new(format!(":{kind}-type"), text(name)))
        .add_header(Header::new(":content-type", text("application/json")));
    let mut frame = Vec::new();
    write_message_to(&message, &mut frame).expect("a message with a few headers can be encoded");
    frame.into()
}
