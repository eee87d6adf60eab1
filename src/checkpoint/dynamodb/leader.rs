//! The leadership of a fleet: the item `Leader` of KCL's table of coordinator states, with the attributes and
//! conditions of the DynamoDB lock client that KCL uses.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use rand::RngExt;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::layout::Layout;
use super::row::{self, Item, string, text};
use crate::aws;
use crate::aws::table::{Table, is_condition_failure};
use crate::checkpoint::{Assigner, CheckpointError, Leadership};

/// The end of the table's name.
pub(super) const COORDINATOR: &str = "-CoordinatorState";
pub(super) const KEY: &str = "key";
/// The key of the leader's item.
pub(super) const LEADER: &str = "Leader";
/// The kind of the leader's item among rows of other kinds.
pub(super) const ENTITY: &str = "LEADER";
const MIGRATION: &str = "Migration3.0";
const CLIENT_VERSION: &str = "cv";
const OWNER: &str = "ownerName";
/// The time in milliseconds, as a text, for which the leadership lasts without a new version.
const DURATION: &str = "leaseDuration";
/// A random text that changes with each write.
const VERSION: &str = "recordVersionNumber";
const RELEASED: &str = "isReleased";

/// The leader's item, as one worker uses it.
#[derive(Debug)]
pub(super) struct LeaderLock {
    table: Table,
    layout: Layout,
    worker: Arc<str>,
    /// The time between two writes of the leader.
    heartbeat: Duration,
    /// The time without a write after which the leadership is free.
    duration: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// This worker's leadership.
    held: Option<Held>,
    /// The last item that was seen, and since when.
    seen: Option<(Seen, Instant)>,
}

#[derive(Debug)]
struct Held {
    version: String,
    written: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Missing,
    Released {
        by: Option<String>,
    },
    Held {
        by: Option<String>,
        version: String,
        duration: Duration,
    },
}

impl Seen {
    fn of(item: Option<&Item>, default: Duration) -> Self {
        let Some(item) = item else { return Seen::Missing };
        let by = text(item, OWNER).map(str::to_owned);
        let version = text(item, VERSION);
        match version.filter(|_| text(item, RELEASED) != Some("1")) {
            Some(version) => Seen::Held {
                by,
                version: version.to_owned(),
                duration: text(item, DURATION)
                    .and_then(|millis| millis.parse().ok())
                    .map_or(default, Duration::from_millis),
            },
            None => Seen::Released { by },
        }
    }

    /// Returns the time after which the leadership may be taken, if the item has not changed.
    fn lasts(&self) -> Duration {
        match self {
            Seen::Missing | Seen::Released { .. } => Duration::ZERO,
            Seen::Held { duration, .. } => *duration,
        }
    }

    fn leader(&self) -> Option<String> {
        match self {
            Seen::Held { by, .. } => by.clone(),
            Seen::Missing | Seen::Released { .. } => None,
        }
    }
}

impl LeaderLock {
    pub(super) fn new(
        client: &Client,
        leases: &str,
        layout: Layout,
        worker: &Arc<str>,
        failover_time: Duration,
    ) -> Self {
        let client = aws::dynamodb::without_retries(client, failover_time / 3);
        LeaderLock {
            table: layout.table(client, leases, COORDINATOR, KEY),
            layout,
            worker: worker.clone(),
            heartbeat: failover_time,
            duration: failover_time * 3,
            state: Mutex::default(),
        }
    }

    fn key(&self) -> &'static str {
        match self.layout {
            Layout::OwnTables => KEY,
            Layout::LeaseTable => row::KEY,
        }
    }

    pub(super) async fn ready(&self) -> Result<(), CheckpointError> {
        Ok(self.table.ready().await?)
    }

    pub(super) async fn lead(&self, patience: Duration) -> Result<Leadership, CheckpointError> {
        self.ready().await?;
        let mut state = self.state.lock().await;
        if let Some(held) = &state.held {
            if held.written.elapsed() < self.heartbeat {
                return Ok(Leadership::Leader);
            }
            // A leader that cannot write must not believe in its leadership any longer than others do.
            let is_late = held.written.elapsed() >= self.duration;
            match self.renew(held).await {
                Ok(Some(held)) => {
                    state.held = Some(held);
                    return Ok(Leadership::Leader);
                }
                Ok(None) => state.held = None,
                Err(error) => {
                    if is_late {
                        state.held = None;
                    }
                    return Err(error);
                }
            }
        }
        let found = Seen::of(self.read(LEADER).await?.as_ref(), self.duration);
        let since = match &state.seen {
            Some((seen, since)) if *seen == found => *since,
            _ => Instant::now(),
        };
        state.seen = Some((found.clone(), since));
        let free = Leadership::Follower {
            leader: None,
            is_late: false,
        };
        if since.elapsed() < found.lasts() {
            return Ok(Leadership::Follower {
                leader: found.leader(),
                // The leader writes once in each third of the time.
                is_late: since.elapsed() >= found.lasts() / 2,
            });
        }
        if since.elapsed() < found.lasts().saturating_add(patience) {
            return Ok(free);
        }
        match self.take(&found).await? {
            Some(held) => {
                (state.held, state.seen) = (Some(held), None);
                Ok(Leadership::Leader)
            }
            None => Ok(free),
        }
    }

    /// Returns who assigns the shards, according to the state of KCL's migration from 2.x to 3.x. redrive leaves
    /// that item to KCL.
    pub(super) async fn assigner(&self) -> Result<Assigner, CheckpointError> {
        self.ready().await?;
        let item = self.read(MIGRATION).await?;
        let version = item.as_ref().and_then(|item| text(item, CLIENT_VERSION));
        Ok(match version {
            Some("CLIENT_VERSION_2X" | "CLIENT_VERSION_UPGRADE_FROM_2X") => Assigner::Takers,
            _ => Assigner::Leader,
        })
    }

    pub(super) async fn leader(&self) -> Result<Option<String>, CheckpointError> {
        // An operator who asks for the leader must not create the table.
        if !self.table.exists().await? {
            return Ok(None);
        }
        Ok(Seen::of(self.read(LEADER).await?.as_ref(), self.duration).leader())
    }

    /// Returns the leader that this worker saw last, if it is another worker. Reads the item if this worker has
    /// not looked yet.
    pub(super) async fn other_leader(&self) -> Result<Option<String>, CheckpointError> {
        let state = self.state.lock().await;
        match (&state.held, &state.seen) {
            (Some(_), _) => Ok(None),
            (None, Some((seen, _))) => Ok(seen.leader()),
            (None, None) => Ok(Seen::of(self.read(LEADER).await?.as_ref(), self.duration).leader()),
        }
    }

    pub(super) async fn resign(&self) -> Result<(), CheckpointError> {
        let mut state = self.state.lock().await;
        let Some(held) = state.held.take() else {
            return Ok(());
        };
        let call = self.update(&held).update_expression("SET #released = :released");
        let call = call
            .expression_attribute_names("#released", RELEASED)
            .expression_attribute_values(":released", string("1"));
        match call.send().await {
            Ok(_) => Ok(()),
            Err(error) if is_condition_failure(&error) => Ok(()),
            Err(error) => Err(self.table.failed("write to", "dynamodb:UpdateItem", error).into()),
        }
    }

    async fn read(&self, name: &str) -> Result<Option<Item>, CheckpointError> {
        let call = self.table.client().get_item().table_name(self.table.name());
        let reply = call
            .key(self.key(), string(name))
            .consistent_read(true)
            .send()
            .await;
        let reply = reply.map_err(|error| self.table.failed("read", "dynamodb:GetItem", error))?;
        Ok(reply.item)
    }

    /// Extends the leadership. Returns `None` if another worker has taken it.
    async fn renew(&self, held: &Held) -> Result<Option<Held>, CheckpointError> {
        let new = Held::now();
        let call = self
            .update(held)
            .update_expression("SET #duration = :duration, #version = :new")
            .expression_attribute_names("#duration", DURATION)
            .expression_attribute_values(":duration", self.millis())
            .expression_attribute_values(":new", string(&new.version));
        match call.send().await {
            Ok(_) => Ok(Some(new)),
            Err(error) if is_condition_failure(&error) => Ok(None),
            Err(error) => Err(self.table.failed("write to", "dynamodb:UpdateItem", error).into()),
        }
    }

    /// Creates an update of the item on the condition that this worker is the leader.
    fn update(
        &self,
        held: &Held,
    ) -> aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder {
        let call = self.table.client().update_item().table_name(self.table.name());
        call.key(self.key(), string(LEADER))
            .condition_expression("attribute_exists(#key) AND #version = :version AND #owner = :me")
            .expression_attribute_names("#key", self.key())
            .expression_attribute_names("#version", VERSION)
            .expression_attribute_names("#owner", OWNER)
            .expression_attribute_values(":version", string(&held.version))
            .expression_attribute_values(":me", string(&self.worker))
    }

    /// Takes a free leadership. Returns `None` if another worker was faster.
    async fn take(&self, found: &Seen) -> Result<Option<Held>, CheckpointError> {
        let new = Held::now();
        let mut item = Item::from([
            (self.key().into(), string(LEADER)),
            (OWNER.into(), string(&self.worker)),
            (DURATION.into(), self.millis()),
            (VERSION.into(), string(&new.version)),
        ]);
        if self.layout == Layout::LeaseTable {
            item.insert(row::ENTITY.into(), string(ENTITY));
        }
        let call = self.table.client().put_item().table_name(self.table.name());
        let call = call
            .set_item(Some(item))
            .expression_attribute_names("#key", self.key());
        let call = match found {
            Seen::Missing => call.condition_expression("attribute_not_exists(#key)"),
            Seen::Released { .. } => call
                .condition_expression("attribute_exists(#key) AND #released = :released")
                .expression_attribute_names("#released", RELEASED)
                .expression_attribute_values(":released", string("1")),
            Seen::Held { version, .. } => call
                .condition_expression("attribute_exists(#key) AND #version = :version")
                .expression_attribute_names("#version", VERSION)
                .expression_attribute_values(":version", string(version)),
        };
        match call.send().await {
            Ok(_) => Ok(Some(new)),
            Err(error) if is_condition_failure(&error) => Ok(None),
            Err(error) => Err(self.table.failed("write to", "dynamodb:PutItem", error).into()),
        }
    }

    fn millis(&self) -> aws_sdk_dynamodb::types::AttributeValue {
        string(&self.duration.as_millis().to_string())
    }
}

impl Held {
    /// Creates a leadership that is about to be written. The time before the write counts: other workers may
    /// see the write earlier than its answer arrives.
    fn now() -> Self {
        Held {
            version: uuid(rand::rng().random()),
            written: Instant::now(),
        }
    }
}

/// Formats 128 random bits as a UUID of version 4, as KCL's lock client writes them.
fn uuid(bits: u128) -> String {
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | (4 << 76) | (2 << 62);
    let hex = format!("{bits:032x}");
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_a_uuid() {
        assert_eq!(uuid(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }

    #[test]
    fn item_of_another_program_is_read() {
        let default = Duration::from_secs(30);
        let mut item = Item::from([
            (OWNER.into(), string("java")),
            (DURATION.into(), string("120000")),
            (VERSION.into(), string("v1")),
        ]);
        let held = Seen::of(Some(&item), default);
        assert_eq!(held.lasts(), Duration::from_secs(120));
        assert_eq!(held.leader().as_deref(), Some("java"));
        item.insert(RELEASED.into(), string("1"));
        let released = Seen::of(Some(&item), default);
        assert_eq!(released.lasts(), Duration::ZERO);
        assert_eq!(Seen::of(None, default), Seen::Missing);
        item.remove(RELEASED);
        item.remove(DURATION);
        assert_eq!(Seen::of(Some(&item), default).lasts(), default);
    }
}
