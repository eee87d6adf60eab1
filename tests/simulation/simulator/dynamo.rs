//! A simulated DynamoDB behind the SDK's client, with one table, and another worker that uses this table.

use std::fmt;
use std::future::pending;
use std::time::{Duration, SystemTime};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::StalledStreamProtectionConfig;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Region};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rand::RngExt;
use redrive::Position;
use redrive::checkpoint::{Checkpoint, SettledAhead};
use serde_json::{Map, Value, json};
use tokio::time::sleep;

use super::fault::Fault;
use super::plan::stream;
use super::world::{World, shard_index};

/// A row in DynamoDB's JSON. Each attribute is an object that names the type of its value.
pub type Item = Map<String, Value>;

/// The number of rows on a page of Scan.
const SCAN_PAGE: usize = 3;

pub const TABLE: &str = "leases";

/// Creates a client of the simulated table.
pub fn client(world: &World) -> Client {
    client_of(Dynamo(world.clone()))
}

/// Creates a client of simulated tables. The SDK's retries are disabled, because their jitter has no seed.
pub fn client_of(tables: impl HttpConnector + 'static) -> Client {
    let connector = SharedHttpConnector::new(tables);
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
struct Dynamo(World);

/// An error of the service: its HTTP status and its code.
pub type Refusal = (u16, &'static str);

pub const CONDITION: Refusal = (400, "ConditionalCheckFailedException");
pub const INVALID: Refusal = (400, "ValidationException");

impl Dynamo {
    async fn call(&self, operation: &str, body: Value) -> Result<Result<Value, Refusal>, ConnectorError> {
        let world = &self.0;
        world.contact("table", 0, 0).await;
        if world.strikes(Fault::RequestLost) {
            return Err(ConnectorError::io("connection refused".into()));
        }
        sleep(world.latency()).await;
        if world.is_down(Fault::StoreOutage) || world.strikes(Fault::ServerError) {
            return Ok(Err((500, "InternalServerError")));
        }
        if world.strikes(Fault::Throttled) {
            return Ok(Err((400, "ThrottlingException")));
        }
        if operation == "UpdateItem" {
            self.note_update(&body);
        }
        if operation == "UpdateItem" && world.strikes(Fault::LateWrite) {
            world.update_late(body);
            return pending().await;
        }
        let answer = self.answer(operation, &body);
        if world.strikes(Fault::RequestDoubled) {
            let _ = self.answer(operation, &body);
        }
        world.contact("tabled", 0, 0).await;
        if world.strikes(Fault::Silence) {
            return pending().await;
        }
        if world.strikes(Fault::ResponseLost) {
            return Err(ConnectorError::io("connection reset".into()));
        }
        Ok(answer)
    }

    fn answer(&self, operation: &str, body: &Value) -> Result<Value, Refusal> {
        self.0.late_updates().iter().for_each(|late| {
            let _ = self.update(late);
        });
        match operation {
            "DescribeTable" => Ok(json!({"Table": {
                "TableName": TABLE,
                "TableStatus": "ACTIVE",
                "KeySchema": [{"AttributeName": "leaseKey", "KeyType": "HASH"}],
            }})),
            "BatchGetItem" => {
                let keys = body["RequestItems"][TABLE]["Keys"].as_array().ok_or(INVALID)?;
                let rows: Vec<Item> = keys.iter().filter_map(|key| self.0.row(row_key(key)?)).collect();
                for row in &rows {
                    self.0.row_read(row);
                }
                Ok(json!({"Responses": {TABLE: rows}, "UnprocessedKeys": {}}))
            }
            "Scan" => {
                let after = row_key(&body["ExclusiveStartKey"]).unwrap_or_default().to_owned();
                let rows = self.0.rows_after(&after, SCAN_PAGE);
                for row in &rows {
                    self.0.row_read(row);
                }
                let last = rows.last().filter(|_| rows.len() == SCAN_PAGE);
                let last = last.map(|row| json!({"leaseKey": row["leaseKey"]}));
                Ok(json!({"Items": rows, "LastEvaluatedKey": last}))
            }
            "GetItem" => {
                let row = self.0.row(row_key(&body["Key"]).ok_or(INVALID)?);
                Ok(row.map_or(json!({}), |row| json!({"Item": row})))
            }
            "PutItem" => {
                let item = body["Item"].as_object().ok_or(INVALID)?;
                let key = item["leaseKey"]["S"].as_str().ok_or(INVALID)?;
                // Its only condition is that the row does not exist.
                match self.0.row(key) {
                    Some(_) => Err(CONDITION),
                    None => {
                        self.0.write_row(item.clone());
                        Ok(json!({}))
                    }
                }
            }
            "UpdateItem" => self.update(body),
            _ => Err((400, "UnknownOperationException")),
        }
    }

    fn update(&self, body: &Value) -> Result<Value, Refusal> {
        let row = self
            .0
            .row(row_key(&body["Key"]).ok_or(INVALID)?)
            .unwrap_or_default();
        let expressions = Expressions::of(body);
        if !expressions.hold(&row) {
            return Err(CONDITION);
        }
        let after = expressions.updated(&row);
        self.0.write_row(after.clone());
        if expressions.update.contains("#leaseOwner =") {
            self.0.row_taken(&after);
        }
        Ok(json!({"Attributes": after}))
    }

    /// Passes a requested checkpoint to the oracle, whether or not the update takes effect.
    fn note_update(&self, body: &Value) {
        let row = row_key(&body["Key"])
            .and_then(|key| self.0.row(key))
            .unwrap_or_default();
        let after = Expressions::of(body).updated(&row);
        if !moves(&row, &after) {
            return;
        }
        if let (Some(shard), Some(checkpoint)) = (shard_of(&after), checkpoint(&after)) {
            let checked = self.0.state().oracle.checkpoint_sent(shard, &checkpoint);
            self.0.check(checked);
        }
    }
}

fn row_key(key: &Value) -> Option<&str> {
    key["leaseKey"]["S"].as_str()
}

/// The condition and update expressions of a request. Supports the subset that a lease table needs.
pub struct Expressions<'a> {
    condition: &'a str,
    update: &'a str,
    /// The key condition of a query.
    key: &'a str,
    names: &'a Value,
    values: &'a Value,
}

impl<'a> Expressions<'a> {
    pub fn of(body: &'a Value) -> Self {
        Expressions {
            condition: body["ConditionExpression"].as_str().unwrap_or_default(),
            update: body["UpdateExpression"].as_str().unwrap_or_default(),
            key: body["KeyConditionExpression"].as_str().unwrap_or_default(),
            names: &body["ExpressionAttributeNames"],
            values: &body["ExpressionAttributeValues"],
        }
    }

    /// Returns the text that the key of a query has.
    pub fn equated(&self) -> Option<&str> {
        let (_, value) = self.key.split_once('=')?;
        self.value(value)["S"].as_str()
    }

    fn name(&self, name: &str) -> &str {
        self.names[name.trim()].as_str().expect("the name is defined")
    }

    fn value(&self, value: &str) -> &Value {
        let value = &self.values[value.trim()];
        assert!(!value.is_null(), "the value is defined");
        value
    }

    /// Returns whether a row meets the condition, such as
    /// `a = :v AND (b = :w OR c = :w) AND attribute_not_exists(d)`.
    pub fn hold(&self, row: &Item) -> bool {
        let mut terms = self.condition.split(" AND ").filter(|term| !term.is_empty());
        terms.all(|term| {
            if let Some(name) = term.strip_prefix("attribute_exists(") {
                return row.contains_key(self.name(name.trim_end_matches(')')));
            }
            if let Some(name) = term.strip_prefix("attribute_not_exists(") {
                return !row.contains_key(self.name(name.trim_end_matches(')')));
            }
            let mut any = term.trim_matches(['(', ')']).split(" OR ");
            any.any(|equals| {
                let (name, value) = equals.split_once('=').expect("the term is an equation");
                row.get(self.name(name)) == Some(self.value(value))
            })
        })
    }

    /// Returns the row after the update, such as `SET a = :v, b = :w ADD c :x REMOVE d, e`.
    pub fn updated(&self, row: &Item) -> Item {
        let mut row = row.clone();
        let update = self.update;
        let (update, removed) = update.split_once(" REMOVE ").unwrap_or((update, ""));
        let (set, added) = update.split_once(" ADD ").unwrap_or((update, ""));
        for part in set.trim_start_matches("SET ").split(", ") {
            let (name, value) = part.split_once('=').expect("the part is an assignment");
            row.insert(self.name(name).to_owned(), self.value(value).clone());
        }
        for part in added.split(", ").filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once(' ').expect("the part has a name and a value");
            let more = number(self.value(value)).expect("the value is a number");
            let sum = row.get(self.name(name)).and_then(number).unwrap_or(0) + more;
            row.insert(self.name(name).to_owned(), json!({"N": sum.to_string()}));
        }
        for part in removed.split(", ").filter(|part| !part.is_empty()) {
            row.remove(self.name(part));
        }
        row
    }
}

fn number(value: &Value) -> Option<u64> {
    value["N"].as_str()?.parse().ok()
}

pub fn text<'a>(row: &'a Item, name: &str) -> Option<&'a str> {
    row.get(name)?["S"].as_str()
}

/// Returns the lease counter of a row; 0 if it has none.
pub fn counter(row: &Item) -> u64 {
    row.get("leaseCounter").and_then(number).unwrap_or(0)
}

/// Returns the checkpoint in a row.
pub fn checkpoint(row: &Item) -> Option<Checkpoint> {
    let sub = row.get("checkpointSubSequenceNumber").and_then(number)?;
    let position = match text(row, "checkpoint")? {
        "TRIM_HORIZON" => Position::TrimHorizon,
        "SHARD_END" => Position::ShardEnd,
        number => Position::Record {
            sequence_number: number.parse().ok()?,
            sub_sequence_number: sub,
        },
    };
    let checkpoint = Checkpoint::at(position);
    let time = |column: &str| {
        let millis = row.get(column).and_then(number)?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_millis(millis))
    };
    let checkpoint = match time("redriveReadUntil") {
        Some(time) => checkpoint.with_read_until(time),
        None => checkpoint,
    };
    let checkpoint = match time("redriveStreamCreated") {
        Some(time) => checkpoint.with_stream_created(time),
        None => checkpoint,
    };
    let ahead = row.get("redriveAhead").and_then(|ahead| ahead["B"].as_str());
    let ahead = ahead.and_then(|ahead| BASE64.decode(ahead).ok());
    Some(
        match ahead.and_then(|bytes| SettledAhead::from_bytes(&bytes).ok()) {
            Some(ahead) => checkpoint.with_ahead(ahead),
            None => checkpoint,
        },
    )
}

/// The interval at which the other worker renews its leases.
const RENEWS: Duration = Duration::from_secs(3);
const RIVAL: &str = "rival";

/// Runs another worker. From time to time, it takes a lease or requests one, and renews the lease for a
/// while. It then releases the lease or stops renewing it.
pub async fn rival(world: World) {
    let mut rng = stream(world.plan().options.seed ^ world.now().as_millis() as u64, RIVAL);
    if !rng.random_bool(0.5) {
        return;
    }
    loop {
        sleep(Duration::from_millis(rng.random_range(10_000..200_000))).await;
        let shard = rng.random_range(0..world.plan().shards.len());
        let (asks, lets_go) = (rng.random_bool(0.5), rng.random_bool(0.5));
        let renewals = rng.random_range(0..20);
        let fault = if asks {
            Fault::LeaseWanted
        } else {
            Fault::LeaseTaken
        };
        if world.now() >= world.plan().calm || world.plan().options.without.contains(&fault) {
            continue;
        }
        let took = change(&world, shard, |row| {
            let owner = text(row, "leaseOwner").map(str::to_owned);
            let ended = text(row, "checkpoint") == Some("SHARD_END");
            let ours = owner.as_deref() == Some(RIVAL) || row.contains_key("checkpointOwner");
            if ended || ours || (asks && owner.is_none()) {
                return false;
            }
            row.insert("leaseOwner".into(), json!({"S": RIVAL}));
            if asks {
                row.insert("checkpointOwner".into(), json!({"S": owner}));
            }
            true
        });
        if !took {
            continue;
        }
        world.count(fault);
        for _ in 0..renewals {
            sleep(RENEWS).await;
            // During a handover, the previous owner renews the lease.
            change(&world, shard, |row| {
                text(row, "leaseOwner") == Some(RIVAL) && !row.contains_key("checkpointOwner")
            });
        }
        if lets_go {
            change(&world, shard, |row| {
                let ours = text(row, "leaseOwner") == Some(RIVAL);
                ours && !row.contains_key("checkpointOwner") && row.remove("leaseOwner").is_some()
            });
        }
    }
}

/// Applies `change` to a row. If `change` returns true, writes the row with a higher lease counter. Returns
/// whether the row was written.
fn change(world: &World, shard: usize, change: impl FnOnce(&mut Item) -> bool) -> bool {
    let Some(mut row) = world.row(&super::world::shard_id(shard)) else {
        return false;
    };
    let changed = change(&mut row);
    if changed {
        let counter = counter(&row) + 1;
        row.insert("leaseCounter".into(), json!({"N": counter.to_string()}));
        world.write_row(row);
    }
    changed
}

impl World {
    /// Records that redrive has read the row with its checkpoint.
    fn row_read(&self, row: &Item) {
        if let (Some(shard), Some(checkpoint)) = (shard_of(row), checkpoint(row)) {
            let mut state = self.state();
            let is_outdated = state.is_outdated(self.plan(), shard, Some(&checkpoint));
            state.oracle.row_loaded(shard, Some(&checkpoint), is_outdated);
            drop(state);
            self.changed();
        }
    }

    /// Records that redrive has taken the lease of a shard, perhaps again.
    fn row_taken(&self, row: &Item) {
        if let (Some(shard), Some(checkpoint)) = (shard_of(row), checkpoint(row)) {
            let mut state = self.state();
            let is_outdated = state.is_outdated(self.plan(), shard, Some(&checkpoint));
            state.oracle.shard_taken(shard, &checkpoint, is_outdated);
            drop(state);
            self.changed();
        }
    }
}

/// Returns whether a write changes the position or the settled-ahead set of a row.
pub fn moves(before: &Item, after: &Item) -> bool {
    ["checkpoint", "redriveAhead"]
        .iter()
        .any(|column| before.get(*column) != after.get(*column))
}

/// Returns the shard of a row.
pub fn shard_of(row: &Item) -> Option<usize> {
    shard_index(text(row, "leaseKey")?)
}

/// Returns whether the other worker has the lease, after the end of a handover.
pub fn is_foreign(row: &Item) -> bool {
    text(row, "leaseOwner") == Some(RIVAL) && !row.contains_key("checkpointOwner")
}

impl fmt::Debug for Dynamo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dynamo")
    }
}

impl HttpConnector for Dynamo {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (operation, body) = self::request(&request);
        let dynamo = self.clone();
        HttpConnectorFuture::new(async move {
            let (status, body) = match dynamo.call(&operation, body).await? {
                Ok(answer) => (200, answer),
                Err((status, code)) => (status, json!({"__type": code, "message": "simulated"})),
            };
            response(status, &body)
        })
    }
}

/// Returns the operation and the body of a request.
pub fn request(request: &HttpRequest) -> (String, Value) {
    let target = request.headers().get("x-amz-target").unwrap_or_default();
    let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
    let body = request.body().bytes().unwrap_or_default();
    (operation, serde_json::from_slice(body).unwrap_or_default())
}

/// Returns a response as DynamoDB sends it.
pub fn response(status: u16, body: &Value) -> Result<HttpResponse, ConnectorError> {
    let status = StatusCode::try_from(status).map_err(|error| ConnectorError::other(error.into(), None))?;
    let mut response = HttpResponse::new(status, SdkBody::from(body.to_string()));
    let headers = response.headers_mut();
    headers.insert("content-type", "application/x-amz-json-1.0");
    Ok(response)
}
