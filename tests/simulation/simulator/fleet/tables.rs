//! The simulated tables of a fleet: the lease table with its index, the coordinator's states and the metrics of
//! the workers.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;
use serde_json::{Value, json};

use crate::dynamo::{CONDITION, Expressions, INVALID, Item, Refusal, text};

pub const LEASES: &str = "leases";
const STATES: &str = "leases-CoordinatorState";
const METRICS: &str = "leases-WorkerMetricStats";
const INDEX: &str = "LeaseOwnerToLeaseKeyIndex";
pub const OWNER: &str = "leaseOwner";

/// A table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Leases,
    States,
    Metrics,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Leases, Kind::States, Kind::Metrics];

    /// Returns the table that a request names.
    pub fn of(body: &Value) -> Option<Self> {
        let batch = || {
            body["RequestItems"]
                .as_object()?
                .keys()
                .next()
                .map(String::as_str)
        };
        match body["TableName"].as_str().or_else(batch)? {
            LEASES => Some(Kind::Leases),
            STATES => Some(Kind::States),
            METRICS => Some(Kind::Metrics),
            _ => None,
        }
    }

    fn key(self) -> &'static str {
        match self {
            Kind::Leases => "leaseKey",
            Kind::States => "key",
            Kind::Metrics => "wid",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Leases => LEASES,
            Kind::States => STATES,
            Kind::Metrics => METRICS,
        }
    }
}

/// A change of an item.
#[derive(Debug)]
pub struct Written {
    pub table: Kind,
    pub key: String,
    pub before: Option<Item>,
    pub after: Option<Item>,
}

/// The settings of the tables. See the plan of the fleet.
#[derive(Debug, Clone)]
pub struct Settings {
    pub staleness: u64,
    pub index_delay: u64,
    pub has_index: bool,
    pub page: usize,
}

/// The versions of an item and the times at which they were written.
type Versions = VecDeque<(Duration, Option<Item>)>;

pub struct Tables {
    pub settings: Settings,
    items: [BTreeMap<String, Versions>; 3],
    /// The owner of each lease, as the index knows it.
    index: BTreeMap<String, String>,
    /// The changes that the index does not know yet, in the order of their times.
    index_changes: VecDeque<(Duration, String, Option<String>)>,
    rng: SmallRng,
    /// The numbers of reads that returned old rows, and of changes that reached the index late.
    pub stale_reads: u64,
    pub late_changes: u64,
}

/// The delay from which a change counts as late.
const LATE: Duration = Duration::from_secs(1);

impl Tables {
    pub fn new(settings: Settings, rng: SmallRng) -> Self {
        Tables {
            settings,
            items: Default::default(),
            index: BTreeMap::new(),
            index_changes: VecDeque::new(),
            rng,
            stale_reads: 0,
            late_changes: 0,
        }
    }

    /// Returns the item as it is now.
    pub fn item(&self, table: Kind, key: &str) -> Option<&Item> {
        self.items[table as usize].get(key)?.back()?.1.as_ref()
    }

    /// Writes or deletes an item.
    pub fn write(&mut self, table: Kind, key: &str, after: Option<Item>, now: Duration) -> Written {
        let versions = self.items[table as usize].entry(key.to_owned()).or_default();
        let before = versions.back().and_then(|(_, item)| item.clone());
        versions.push_back((now, after.clone()));
        let oldest = now.saturating_sub(Duration::from_millis(self.settings.staleness));
        // The newest version that is too old is still what a stale read returns.
        while versions.get(1).is_some_and(|(at, _)| *at < oldest) {
            versions.pop_front();
        }
        let owner = |item: &Option<Item>| {
            item.as_ref()
                .and_then(|item| text(item, OWNER).map(str::to_owned))
        };
        if table == Kind::Leases && owner(&before) != owner(&after) {
            let delay = self.rng.random_range(0..=self.settings.index_delay);
            let delay = Duration::from_millis(delay * u64::from(self.rng.random_bool(0.5)));
            self.late_changes += u64::from(delay >= LATE);
            // The index applies the changes in their order.
            let last = self.index_changes.back().map_or(Duration::ZERO, |(at, ..)| *at);
            let change = ((now + delay).max(last), key.to_owned(), owner(&after));
            self.index_changes.push_back(change);
        }
        Written {
            table,
            key: key.to_owned(),
            before,
            after,
        }
    }

    /// Answers a request, and adds what it has changed to `written`.
    pub fn answer(
        &mut self,
        operation: &str,
        body: &Value,
        now: Duration,
        written: &mut Vec<Written>,
    ) -> Result<Value, Refusal> {
        let table = Kind::of(body).ok_or(INVALID)?;
        match operation {
            "DescribeTable" => Ok(json!({"Table": {
                "TableName": table.name(),
                "TableStatus": "ACTIVE",
                "KeySchema": [{"AttributeName": table.key(), "KeyType": "HASH"}],
            }})),
            "BatchGetItem" => {
                let keys = body["RequestItems"][table.name()]["Keys"]
                    .as_array()
                    .ok_or(INVALID)?;
                let keys = keys.iter().filter_map(|key| key_of(table, key));
                let items: Vec<&Item> = keys.filter_map(|key| self.item(table, key)).collect();
                Ok(json!({"Responses": {table.name(): items}, "UnprocessedKeys": {}}))
            }
            "GetItem" => {
                let item = self.item(table, key_of(table, &body["Key"]).ok_or(INVALID)?);
                Ok(item.map_or(json!({}), |item| json!({"Item": item})))
            }
            "Scan" => Ok(self.scan(table, body, now)),
            "Query" => self.query(body, now),
            "PutItem" => {
                let item = body["Item"].as_object().ok_or(INVALID)?;
                let key = key_of(table, &body["Item"]).ok_or(INVALID)?;
                if !self.meets(table, key, &Expressions::of(body)) {
                    return Err(CONDITION);
                }
                written.push(self.write(table, key, Some(item.clone()), now));
                Ok(json!({}))
            }
            "UpdateItem" => {
                let key = key_of(table, &body["Key"]).ok_or(INVALID)?;
                let expressions = Expressions::of(body);
                if !self.meets(table, key, &expressions) {
                    return Err(CONDITION);
                }
                let mut before = self.item(table, key).cloned().unwrap_or_default();
                before.insert(table.key().to_owned(), json!({"S": key}));
                let after = expressions.updated(&before);
                written.push(self.write(table, key, Some(after.clone()), now));
                Ok(json!({"Attributes": after}))
            }
            "DeleteItem" => {
                let key = key_of(table, &body["Key"]).ok_or(INVALID)?;
                if !self.meets(table, key, &Expressions::of(body)) {
                    return Err(CONDITION);
                }
                written.push(self.write(table, key, None, now));
                Ok(json!({}))
            }
            _ => Err((400, "UnknownOperationException")),
        }
    }

    fn meets(&self, table: Kind, key: &str, expressions: &Expressions<'_>) -> bool {
        let none = Item::new();
        expressions.hold(self.item(table, key).unwrap_or(&none))
    }

    fn scan(&mut self, table: Kind, body: &Value, now: Duration) -> Value {
        let is_consistent = body["ConsistentRead"].as_bool() == Some(true);
        let age = match is_consistent || self.rng.random_bool(0.6) {
            true => 0,
            false => self.rng.random_range(0..=self.settings.staleness),
        };
        let at = now.saturating_sub(Duration::from_millis(age));
        let after = key_of(table, &body["ExclusiveStartKey"]).unwrap_or_default();
        let mut found = Vec::new();
        let mut is_old = false;
        for (key, versions) in &self.items[table as usize] {
            if key.as_str() <= after && !after.is_empty() {
                continue;
            }
            let version = match age {
                0 => versions.back(),
                _ => versions.iter().rev().find(|(written, _)| *written <= at),
            };
            is_old |= version.map(|(written, _)| written) != versions.back().map(|(written, _)| written);
            if let Some(item) = version.and_then(|(_, item)| item.as_ref()) {
                found.push((key, item));
                if found.len() == self.settings.page {
                    break;
                }
            }
        }
        self.stale_reads += u64::from(is_old);
        let is_full = found.len() == self.settings.page;
        let last = found.last().filter(|_| is_full);
        let last = last.map(|(key, _)| json!({table.key(): {"S": key}}));
        let items: Vec<&Item> = found.into_iter().map(|(_, item)| item).collect();
        json!({"Items": items, "LastEvaluatedKey": last})
    }

    /// Answers from the index, which lags behind the table.
    fn query(&mut self, body: &Value, now: Duration) -> Result<Value, Refusal> {
        if !self.settings.has_index || body["IndexName"] != INDEX {
            return Err(INVALID);
        }
        let is_due = |change: &mut (Duration, String, Option<String>)| change.0 <= now;
        while let Some((_, key, owner)) = self.index_changes.pop_front_if(is_due) {
            match owner {
                Some(owner) => self.index.insert(key, owner),
                None => self.index.remove(&key),
            };
        }
        let expressions = Expressions::of(body);
        let asked = expressions.equated().ok_or(INVALID)?;
        let after = key_of(Kind::Leases, &body["ExclusiveStartKey"]).unwrap_or_default();
        let own = self.index.iter().filter(|(_, owner)| **owner == asked);
        let own = own.map(|(key, _)| key).filter(|key| key.as_str() > after);
        let keys: Vec<&String> = own.take(self.settings.page).collect();
        let item = |key: &&String| json!({"leaseKey": {"S": key}, OWNER: {"S": asked}});
        let items: Vec<Value> = keys.iter().map(item).collect();
        let last = items
            .last()
            .filter(|_| items.len() == self.settings.page)
            .cloned();
        Ok(json!({"Items": items, "LastEvaluatedKey": last}))
    }
}

fn key_of(table: Kind, key: &Value) -> Option<&str> {
    key[table.key()]["S"].as_str()
}

/// Returns the worker that works on the shard of a row.
pub fn holder(row: &Item) -> Option<&str> {
    text(row, "checkpointOwner").or_else(|| text(row, OWNER))
}
