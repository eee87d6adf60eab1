//! Settings of idempotency: which records count as the same, and how long the store remembers them.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{IdempotencyStore, Key, PayloadHash};
use crate::config::ConfigError;
use crate::external::caught;
use crate::observer::{Observers, UserCode};
use crate::record::Record;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The maximum of `keep_for`. The end of a much longer time would be no valid point in time.
const CENTURY: Duration = Duration::from_secs(36_500 * 24 * 60 * 60);
/// The time to keep a key if the stream's retention is unknown: a week and a day. Kinesis keeps records for a
/// day by default, and most streams keep them for at most a week.
const UNKNOWN_RETENTION: Duration = Duration::from_secs(8 * 24 * 60 * 60);

/// Makes processing idempotent. [`ResilientBuilder::idempotency`](crate::ResilientBuilder::idempotency) takes
/// these settings, or a store alone. [`ResilientBuilder::build`](crate::ResilientBuilder::build) checks the
/// settings.
///
/// | setting | default |
/// |---|---|
/// | the key | the record's place: stream, shard, sequence and sub-sequence number |
/// | [`check_payload`](Idempotency::check_payload) | off |
/// | [`keep_for`](Idempotency::keep_for) | the stream's retention plus a day if the consumer knows it, else 8 days |
/// | [`cache`](Idempotency::cache) | 10,000 keys |
///
/// The default key catches redelivery. It does not catch a record that a producer has put twice, because each
/// put has its own sequence number, nor a record that was redriven into a stream. A business key, such as the
/// order's number in [a field](Idempotency::json_field), catches these as well. A record without the value
/// for the key is identified by its place.
#[derive(Clone)]
pub struct Idempotency {
    pub(crate) store: Arc<dyn IdempotencyStore>,
    value: Option<Arc<ValueOf>>,
    pub(crate) checks_payload: bool,
    keep_for: Option<Duration>,
    pub(crate) cache: usize,
    clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    /// The user's function that makes keys.
    code: Arc<UserCode>,
}

/// A function that returns a value which is equal for all records that mean the same.
type ValueOf = dyn Fn(&Record) -> Option<Vec<u8>> + Send + Sync;

impl Idempotency {
    /// Creates settings that use this store.
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

    /// Sets the function that makes the key: records with equal values count as the same. The store keeps
    /// only a hash of the value.
    #[must_use]
    pub fn key<V: Into<Vec<u8>>>(
        mut self,
        value: impl Fn(&Record) -> Option<V> + Send + Sync + 'static,
    ) -> Self {
        self.value = Some(Arc::new(move |record| value(record).map(Into::into)));
        self
    }

    /// Uses a field of the JSON payload as the key: records with equal fields count as the same. `pointer` is
    /// a JSON Pointer (RFC 6901), such as `/order/id`.
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

    /// Uses the payload as the key: records with equal payloads count as the same.
    #[must_use]
    pub fn payload(self) -> Self {
        self.key(|record| Some(record.payload().to_vec()))
    }

    /// Sets whether a record with a known key must have the same payload as before. Another payload, such as
    /// two orders with one number, is a permanent failure ([`PayloadMismatch`]). Default: off.
    #[must_use]
    pub fn check_payload(mut self, on: bool) -> Self {
        self.checks_payload = on;
        self
    }

    /// Sets how long the store remembers processed records: more than zero, and at most 36,500 days. Use at
    /// least the time in which a record may be delivered again: the stream's retention.
    #[must_use]
    pub fn keep_for(mut self, time: Duration) -> Self {
        self.keep_for = Some(time);
        self
    }

    /// Sets the number of keys that are also remembered in memory, which saves calls to the store. Only
    /// completed keys are cached. 0 disables the cache. Default: 10,000.
    #[must_use]
    pub fn cache(mut self, keys: usize) -> Self {
        self.cache = keys;
        self
    }

    /// Sets the clock by which claims expire, for tests with a clock of their own.
    #[must_use]
    pub fn clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(now);
        self
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        match self.keep_for {
            Some(time) if time.is_zero() || time > CENTURY => {
                let problem = format!("must be more than zero and at most 36,500 days, not {time:?}");
                Err(ConfigError::new("keep_for", problem))
            }
            _ => Ok(()),
        }
    }

    /// Returns the key of a record. A record for which the user's function returns no value, or panics, is
    /// identified by its place.
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

    /// Returns the time until which a record that is processed at `now` is remembered.
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

/// The record has the key of a processed record, and another payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another record with the same idempotency key was processed with a different payload")]
pub struct PayloadMismatch;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idempotency::Memory;

    #[test]
    fn the_documented_defaults() {
        let settings = Idempotency::new(Memory::new());
        assert!(settings.value.is_none() && !settings.checks_payload);
        assert_eq!((settings.keep_for, settings.cache), (None, 10_000));
        let now = SystemTime::UNIX_EPOCH;
        assert_eq!(settings.keep_until(now, None), now + 8 * DAY);
        assert_eq!(settings.keep_until(now, Some(2 * DAY)), now + 3 * DAY);
    }

    #[test]
    fn times_that_cannot_be_kept_are_refused() {
        for time in [Duration::ZERO, CENTURY + DAY, Duration::MAX] {
            let settings = Idempotency::new(Memory::new()).keep_for(time);
            assert_eq!(settings.validate().expect_err("refused").setting(), "keep_for");
        }
        let longest = Idempotency::new(Memory::new()).keep_for(CENTURY);
        assert_eq!(longest.validate(), Ok(()));
        let now = SystemTime::now();
        assert_eq!(longest.keep_until(now, None), now + CENTURY);
    }
}
