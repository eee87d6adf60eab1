//! How records are told apart, and for how long they are remembered.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{IdempotencyStore, Key, PayloadHash};
use crate::config::ConfigError;
use crate::external::caught;
use crate::observer::{Observers, UserCode};
use crate::record::Record;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// A week, and a day: Kinesis keeps records for a day unless told otherwise, and most are content with a week.
const UNKNOWN_RETENTION: Duration = Duration::from_secs(8 * 24 * 60 * 60);

/// Makes processing idempotent: given to
/// [`ResilientBuilder::idempotency`](crate::ResilientBuilder::idempotency), which takes a store alone as well.
///
/// | setting | default |
/// |---|---|
/// | the key | the record's place: stream, shard, sequence and sub-sequence number |
/// | [`check_payload`](Idempotency::check_payload) | off |
/// | [`keep_for`](Idempotency::keep_for) | the stream's retention and a day, where a consumer knows it; else 8 days |
/// | [`cache`](Idempotency::cache) | 10,000 keys |
///
/// The default key catches redelivery. It does not know that a producer has put a record twice, which gives it two
/// sequence numbers, nor a record that was redriven into a stream: a key of the business, such as
/// [a field](Idempotency::json_field) with the order's number, catches these as well. A record that does not have what
/// the key is made of is told apart by its place.
#[derive(Clone)]
pub struct Idempotency {
    pub(crate) store: Arc<dyn IdempotencyStore>,
    value: Option<Arc<ValueOf>>,
    pub(crate) checks_payload: bool,
    keep_for: Option<Duration>,
    pub(crate) cache: usize,
    clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    /// The function that makes keys.
    code: Arc<UserCode>,
}

/// What is the same for all records that mean the same.
type ValueOf = dyn Fn(&Record) -> Option<Vec<u8>> + Send + Sync;

impl Idempotency {
    /// Remembers in this store.
    pub fn new(store: impl IdempotencyStore + 'static) -> Self {
        Idempotency {
            store: Arc::new(store),
            value: None,
            checks_payload: false,
            keep_for: None,
            cache: 10_000,
            clock: Arc::new(SystemTime::now),
            code: Arc::new(UserCode::new("idempotency key")),
        }
    }

    /// Two records are the same if this makes the same value of them. Of a value only its hash is stored.
    #[must_use]
    pub fn key<V: Into<Vec<u8>>>(
        mut self,
        value: impl Fn(&Record) -> Option<V> + Send + Sync + 'static,
    ) -> Self {
        self.value = Some(Arc::new(move |record| value(record).map(Into::into)));
        self
    }

    /// Two records are the same if this field of their JSON payloads is: a JSON Pointer (RFC 6901), such as
    /// `/order/id`.
    #[must_use]
    pub fn json_field(self, pointer: impl Into<String>) -> Self {
        let pointer = pointer.into();
        self.key(move |record| {
            let payload: serde_json::Value = serde_json::from_slice(record.payload()).ok()?;
            match payload.pointer(&pointer)? {
                serde_json::Value::Null => None,
                value => serde_json::to_vec(value).ok(),
            }
        })
    }

    /// Two records are the same if their payloads are.
    #[must_use]
    pub fn payload(self) -> Self {
        self.key(|record| Some(record.payload().to_vec()))
    }

    /// Whether a record whose key is known must have the same payload as before. If it has not, it fails for good
    /// ([`PayloadMismatch`]): two orders with one number. Default: off.
    #[must_use]
    pub fn check_payload(mut self, on: bool) -> Self {
        self.checks_payload = on;
        self
    }

    /// For how long it is remembered what was processed. As long as it may be delivered again, at least: the stream's
    /// retention.
    #[must_use]
    pub fn keep_for(mut self, time: Duration) -> Self {
        self.keep_for = Some(time);
        self
    }

    /// How many keys are remembered in memory as well, so that the store need not be asked. Only what is completed is;
    /// 0: none.
    #[must_use]
    pub fn cache(mut self, keys: usize) -> Self {
        self.cache = keys;
        self
    }

    /// What tells the time, by which claims expire: for tests, whose time is their own.
    #[must_use]
    pub fn clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(now);
        self
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        match self.keep_for {
            Some(time) if time.is_zero() => Err(ConfigError::new(
                "keep_for",
                "what is remembered for no time is processed twice",
            )),
            _ => Ok(()),
        }
    }

    /// A record of which the user's function makes no value, or panics, is told apart by its place.
    pub(crate) fn key_of(&self, application: &str, record: &Record, observers: &Observers) -> Key {
        let value = self.value.as_ref();
        let value = value.and_then(|value| observers.caught(&self.code, || value(record)).flatten());
        match value {
            Some(value) => Key::of_value(application, &value),
            None => Key::of_place(application, record),
        }
    }

    pub(crate) fn payload_of(&self, record: &Record) -> Option<PayloadHash> {
        self.checks_payload.then(|| PayloadHash::of(record.payload()))
    }

    pub(crate) fn now(&self) -> SystemTime {
        caught(|| (self.clock)()).unwrap_or_else(SystemTime::now)
    }

    /// Until when what is processed now is remembered.
    pub(crate) fn keep_until(&self, now: SystemTime, retention: Option<Duration>) -> SystemTime {
        let known = self.keep_for.or_else(|| retention?.checked_add(DAY));
        now.checked_add(known.unwrap_or(UNKNOWN_RETENTION)).unwrap_or(now)
    }
}

impl<S: IdempotencyStore + 'static> From<S> for Idempotency {
    fn from(store: S) -> Self {
        Idempotency::new(store)
    }
}

impl fmt::Debug for Idempotency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idempotency")
            .field("store", &self.store)
            .field("own_key", &self.value.is_some())
            .field("checks_payload", &self.checks_payload)
            .field("keep_for", &self.keep_for)
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

/// A record has the key of one that was processed, and another payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another record with the same idempotency key was processed, and its payload was not this one")]
pub struct PayloadMismatch;
