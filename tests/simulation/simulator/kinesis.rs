//! A simulated Kinesis behind the SDK's client: requests and responses, without a network.

use std::fmt;
use std::future::pending;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::StalledStreamProtectionConfig;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::{BehaviorVersion, Config, Region};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use redrive::dead_letter::DeadLetter;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::fault::Fault;
use super::lineage::PlannedShard;
use super::oracle::Promise;
use super::subscription;
use super::world::{World, first_from, shard_id, shard_index};
use super::{LETTERS, STREAM};

/// Creates a client of the simulated Kinesis. The SDK's retries are disabled, because their jitter has no
/// seed.
pub fn client(world: &World) -> Client {
    let connector = SharedHttpConnector::new(Kinesis(world.clone()));
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .allow_no_auth()
        .endpoint_url("http://simulated")
        .retry_config(RetryConfig::disabled())
        // It measures by the machine's clock, which does not advance with the simulated one.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .http_client(http_client_fn(move |_, _| connector.clone()));
    Client::from_conf(config.build())
}

#[derive(Clone)]
struct Kinesis(World);

/// An error of the service: its HTTP status and its code.
pub type Refusal = (u16, &'static str);

const THROTTLED: Refusal = (400, "ProvisionedThroughputExceededException");
const INVALID: Refusal = (400, "InvalidArgumentException");
const NOT_FOUND: Refusal = (400, "ResourceNotFoundException");
const EXPIRED: Refusal = (400, "ExpiredIteratorException");

/// The lifetime of a shard iterator (GetShardIterator, Kinesis API reference).
const ITERATOR_LIFE_MILLIS: u128 = 5 * 60 * 1_000;
/// The number of shards on a page of ListShards.
const SHARD_PAGE: usize = 2;

impl Kinesis {
    async fn call(
        &self,
        operation: &'static str,
        body: Value,
    ) -> Result<Result<Value, Refusal>, ConnectorError> {
        let world = &self.0;
        world.contact(operation, 0, 0).await;
        let letters = body["StreamName"] == LETTERS;
        if operation == "PutRecords" {
            self.note_letters(&body);
        }
        if world.strikes(Fault::RequestLost) || world.is_down(Fault::KinesisOutage) {
            return Err(ConnectorError::io("connection refused".into()));
        }
        sleep(world.latency()).await;
        if letters && world.is_down(Fault::SinkOutage) {
            return Ok(Err((500, "InternalFailure")));
        }
        let refusals = [
            (Fault::Throttled, THROTTLED),
            (Fault::KmsThrottled, (400, "KMSThrottlingException")),
            (Fault::ServerError, (500, "InternalFailure")),
        ];
        for (fault, refusal) in refusals {
            if world.strikes(fault) {
                return Ok(Err(refusal));
            }
        }
        // Calls for the dead-letter stream's description are not denied: the consumer would not start.
        let of_letters = letters && operation == "DescribeStreamSummary";
        if !of_letters && world.is_down(Fault::AccessDenied) {
            return Ok(Err((400, "AccessDeniedException")));
        }
        if !of_letters && operation != "SubscribeToShard" && world.strikes(Fault::EmptyAnswer) {
            return Ok(Ok(json!({})));
        }
        {
            let mut state = world.state();
            state.drop_old(world.plan());
            if !letters && world.plan().is_gone(state.now()) {
                return Ok(Err(NOT_FOUND));
            }
        }
        let answer = self.answer(operation, &body);
        let answer = if world.strikes(Fault::RequestDoubled) {
            self.answer(operation, &body)
        } else {
            answer
        };
        world.contact("answered", 0, 0).await;
        if world.strikes(Fault::Silence) {
            return pending().await;
        }
        if world.strikes(Fault::ResponseLost) {
            return Err(ConnectorError::io("connection reset".into()));
        }
        Ok(answer)
    }

    fn answer(&self, operation: &str, body: &Value) -> Result<Value, Refusal> {
        match operation {
            "ListShards" => self.list_shards(body),
            "DescribeStreamSummary" => {
                let (plan, mut state) = (self.0.plan(), self.0.state());
                let hours = plan.retention_hours(state.now());
                if state.now() >= plan.retention.1 && hours != plan.retention.0 {
                    state.counts.add(Fault::RetentionChanged);
                }
                let created = state.created(plan).as_secs();
                Ok(summary(
                    body["StreamName"].as_str().unwrap_or_default(),
                    hours,
                    created,
                ))
            }
            "GetShardIterator" => self.get_shard_iterator(body),
            "GetRecords" => self.get_records(body),
            "PutRecords" => Ok(self.put_records(body)),
            "RegisterStreamConsumer" => self.0.state().register(),
            "DescribeStreamConsumer" => self.0.state().describe_consumer(),
            "SubscribeToShard" => self.subscribe(body),
            _ => Err((400, "UnknownOperationException")),
        }
    }

    fn list_shards(&self, body: &Value) -> Result<Value, Refusal> {
        let first: usize = match body["NextToken"].as_str() {
            Some(token) => token.parse().map_err(|_| INVALID)?,
            None => 0,
        };
        let (plan, now) = (self.0.plan(), self.0.now());
        let late = |shard: &PlannedShard| !shard.parents.is_empty() && now < shard.opens + plan.listing_lag;
        let there = plan.shards.iter().filter(|shard| shard.opens <= now);
        if there.clone().any(late) {
            self.0.count(Fault::LateListing);
        }
        let listed: Vec<(usize, &PlannedShard)> = plan
            .shards
            .iter()
            .enumerate()
            .filter(|(_, shard)| shard.opens <= now && !late(shard))
            .filter(|(index, _)| !self.0.state().has_vanished(plan, *index))
            .collect();
        let page = listed.iter().skip(first).take(SHARD_PAGE);
        let shards: Vec<Value> = page
            .map(|(index, shard)| {
                let mut described = json!({
                    "ShardId": shard_id(*index),
                    "HashKeyRange": {
                        "StartingHashKey": shard.first_key.to_string(),
                        "EndingHashKey": shard.last_key.to_string(),
                    },
                    "SequenceNumberRange": {"StartingSequenceNumber": "1"},
                });
                for (name, parent) in ["ParentShardId", "AdjacentParentShardId"]
                    .iter()
                    .zip(&shard.parents)
                {
                    described[*name] = shard_id(*parent).into();
                }
                if shard.is_closed(now) {
                    described["SequenceNumberRange"]["EndingSequenceNumber"] = "9".repeat(56).into();
                }
                described
            })
            .collect();
        let mut shards = shards;
        if self.0.strikes(Fault::PartialListing) {
            shards.pop();
        }
        if self.0.strikes(Fault::RepeatedListing) {
            shards.extend(shards.clone());
        }
        let next = first + SHARD_PAGE;
        let next = (next < listed.len()).then(|| next.to_string());
        Ok(json!({"Shards": shards, "NextToken": next}))
    }

    fn iterator(&self, shard: usize, index: usize) -> String {
        let state = self.0.state();
        let made = state.clock().as_millis();
        format!("{shard}/{index}/{made}/{}", u128::from(state.is_recreated()))
    }

    fn get_shard_iterator(&self, body: &Value) -> Result<Value, Refusal> {
        let shard = body["ShardId"].as_str().and_then(shard_index).ok_or(INVALID)?;
        let index = self.first(shard, &body["ShardIteratorType"], &body["StartingSequenceNumber"])?;
        if index > 0 && self.0.strikes(Fault::RefusedNumber) {
            return Err(INVALID);
        }
        Ok(json!({"ShardIterator": self.iterator(shard, index)}))
    }

    fn subscribe(&self, body: &Value) -> Result<Value, Refusal> {
        let (world, position) = (&self.0, &body["StartingPosition"]);
        let shard = body["ShardId"].as_str().and_then(shard_index).ok_or(INVALID)?;
        let first = self.first(shard, &position["Type"], &position["SequenceNumber"])?;
        let early = world.strikes(Fault::SubscribedEarly);
        let mut state = world.state();
        let now = state.now();
        state.subscriptions.subscribe(shard, now)?;
        state.shard_read(shard);
        drop(state);
        world.changed();
        let first = if early { first.saturating_sub(3) } else { first };
        Ok(subscription::accepted(shard, first, now))
    }

    fn get_records(&self, body: &Value) -> Result<Value, Refusal> {
        let iterator: Vec<u128> = body["ShardIterator"]
            .as_str()
            .and_then(|token| token.split('/').map(|part| part.parse().ok()).collect())
            .ok_or(INVALID)?;
        let [shard, index, made, stream] = iterator[..] else {
            return Err(INVALID);
        };
        let (shard, index) = (shard as usize, index as usize);
        let limit = body["Limit"].as_u64().unwrap_or(10_000) as usize;
        let expired = {
            let state = self.0.state();
            if state.has_vanished(self.0.plan(), shard) {
                return Err(NOT_FOUND);
            }
            let is_old = state.clock().as_millis() - made > ITERATOR_LIFE_MILLIS;
            is_old || stream != u128::from(state.is_recreated())
        };
        if expired || self.0.strikes(Fault::ExpiredIterator) {
            return Err(EXPIRED);
        }
        // Not with the iterator: the consumer also requests an iterator to find out whether a shard exists.
        self.0.state().shard_read(shard);
        self.0.changed();
        let page = Page::of(&self.0, shard, index, limit);
        Ok(json!({
            "Records": page.records,
            "NextShardIterator": (!page.is_last && !self.0.strikes(Fault::NoNextIterator))
                .then(|| self.iterator(shard, page.end)),
            "MillisBehindLatest": page.behind,
        }))
    }

    /// Returns the index of the first record from a starting position.
    fn first(&self, shard: usize, kind: &Value, number: &Value) -> Result<usize, Refusal> {
        let state = self.0.state();
        if state.has_vanished(self.0.plan(), shard) {
            return Err(NOT_FOUND);
        }
        let Some(number) = number.as_str() else {
            return Ok(0);
        };
        let number = number.to_owned().try_into().map_err(|_| INVALID)?;
        if state.is_of_another_stream(self.0.plan(), shard, &number) {
            return Err(INVALID);
        }
        first_from(&number, kind == "AFTER_SEQUENCE_NUMBER").ok_or(INVALID)
    }

    fn put_records(&self, body: &Value) -> Value {
        let mut failed = 0;
        let entries: Vec<Value> = letters(body)
            .map(|letter| {
                if self.0.strikes(Fault::EntryFailed) {
                    failed += 1;
                    return json!({"ErrorCode": THROTTLED.1, "ErrorMessage": "slow down"});
                }
                match letter {
                    Ok(letter) => self.0.letter_stored(&letter),
                    Err(error) => self.0.violated(Promise::LetterWhole, error),
                }
                json!({"ShardId": shard_id(0), "SequenceNumber": "1"})
            })
            .collect();
        json!({"FailedRecordCount": failed, "Records": entries})
    }

    fn note_letters(&self, body: &Value) {
        letters(body)
            .flatten()
            .for_each(|letter| self.0.letter_sent(&letter));
    }
}

/// A page of a shard's records, as Kinesis returns it.
pub struct Page {
    pub records: Vec<Value>,
    /// The index after the last record of the page.
    pub end: usize,
    /// The time by which the page is behind the tip of the shard, in milliseconds.
    pub behind: u64,
    /// The shard is closed, and the page reaches its end.
    pub is_last: bool,
}

impl Page {
    pub fn of(world: &World, shard: usize, first: usize, limit: usize) -> Self {
        let empty = world.strikes(Fault::EmptyPage);
        let mut state = world.state();
        let now = state.now();
        state.drop_old(world.plan());
        let visible = state.visible(world.plan(), shard);
        let dropped = state.oracle.shards[shard].partition_point(|fate| fate.dropped.is_some());
        let first = first.max(dropped);
        let end = if empty { first } else { visible.min(first + limit) };
        let fates = &state.oracle.shards[shard];
        let records = fates[first..end].iter().map(|fate| {
            let arrival = fate
                .record
                .arrival()
                .and_then(|arrival| arrival.elapsed_since_epoch());
            json!({
                "SequenceNumber": fate.record.sequence_number().as_str(),
                "PartitionKey": fate.planned.key,
                "ApproximateArrivalTimestamp": arrival,
                "Data": BASE64.encode(fate.record.payload()),
            })
        });
        let records = records.collect();
        let behind = fates[end..visible]
            .first()
            .map_or(0, |next| (now - next.planned.at).as_millis() as u64 + 1);
        state.note("page", shard, end);
        Page {
            records,
            end,
            behind,
            is_last: world.plan().shards[shard].is_closed(now) && end == visible,
        }
    }
}

fn letters(body: &Value) -> impl Iterator<Item = Result<DeadLetter, String>> + '_ {
    body["Records"].as_array().into_iter().flatten().map(|entry| {
        let data = BASE64.decode(entry["Data"].as_str().unwrap_or_default());
        let data = Bytes::from(data.map_err(|error| error.to_string())?);
        DeadLetter::decode(&data).map_err(|error| error.to_string())
    })
}

fn summary(stream: &str, hours: u32, created: u64) -> Value {
    json!({"StreamDescriptionSummary": {
        "StreamName": stream,
        "StreamARN": format!("arn:aws:kinesis:us-east-1:000000000000:stream/{stream}"),
        "StreamStatus": "ACTIVE",
        "RetentionPeriodHours": hours,
        "StreamCreationTimestamp": created,
        "EnhancedMonitoring": [],
        "OpenShardCount": 1,
        "MaxRecordSizeInKiB": if stream == STREAM { 1_024 } else { 10_240 },
    }})
}

/// Converts a time to seconds since 1970, as the service writes times.
trait ElapsedSinceEpoch {
    fn elapsed_since_epoch(self) -> Option<f64>;
}

impl ElapsedSinceEpoch for std::time::SystemTime {
    fn elapsed_since_epoch(self) -> Option<f64> {
        let elapsed = self.duration_since(std::time::SystemTime::UNIX_EPOCH).ok()?;
        Some(elapsed.as_secs_f64())
    }
}

impl fmt::Debug for Kinesis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kinesis")
    }
}

const OPERATIONS: [&str; 8] = [
    "ListShards",
    "DescribeStreamSummary",
    "GetShardIterator",
    "GetRecords",
    "PutRecords",
    "RegisterStreamConsumer",
    "DescribeStreamConsumer",
    "SubscribeToShard",
];

impl HttpConnector for Kinesis {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let name = target.rsplit('.').next().unwrap_or_default();
        let operation = OPERATIONS
            .iter()
            .find(|operation| **operation == name)
            .copied()
            .unwrap_or("?");
        let body = request.body().bytes().unwrap_or_default();
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let kinesis = self.clone();
        HttpConnectorFuture::new(async move {
            let (status, body) = match kinesis.call(operation, body).await? {
                Ok(answer) if kinesis.0.strikes(Fault::Garbled) => {
                    let text = answer.to_string();
                    (200, text[..text.len() / 2].to_owned())
                }
                Ok(answer) if operation == "SubscribeToShard" => {
                    return Ok(subscription::begin(kinesis.0, &answer));
                }
                Ok(answer) => (200, answer.to_string()),
                Err((status, code)) => (
                    status,
                    json!({"__type": code, "message": "simulated"}).to_string(),
                ),
            };
            let status =
                StatusCode::try_from(status).map_err(|error| ConnectorError::other(error.into(), None))?;
            let mut response = HttpResponse::new(status, SdkBody::from(body));
            response
                .headers_mut()
                .insert("content-type", "application/x-amz-json-1.1");
            Ok(response)
        })
    }
}
