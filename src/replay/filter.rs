//! The filter that selects dead letters.

use std::time::SystemTime;

use crate::config::ConfigError;
use crate::dead_letter::{DeadLetter, Reason};
use crate::failure::Class;
use crate::record::StreamId;

/// Selects dead letters by their contents. Without a condition the filter matches every dead letter. Among
/// several values of one kind, one must fit; of several kinds, all must.
///
/// ```
/// use redrive::dead_letter::Reason;
/// use redrive::replay::Filter;
///
/// let exhausted = Filter::new()
///     .reason(Reason::AttemptsExhausted)
///     .reason(Reason::TimeExhausted)
///     .stream("orders");
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Filter {
    since: Option<SystemTime>,
    until: Option<SystemTime>,
    reasons: Vec<Reason>,
    classes: Vec<Class>,
    codes: Vec<String>,
    streams: Vec<StreamId>,
    shards: Vec<String>,
    partition_keys: Vec<String>,
    ids: Vec<String>,
}

impl Filter {
    /// Creates a filter that matches every dead letter.
    pub fn new() -> Self {
        Filter::default()
    }

    /// Matches dead letters that were made at this time or later.
    pub fn since(mut self, time: SystemTime) -> Self {
        self.since = Some(time);
        self
    }

    /// Matches dead letters that were made before this time.
    pub fn until(mut self, time: SystemTime) -> Self {
        self.until = Some(time);
        self
    }

    /// Matches dead letters with this reason.
    pub fn reason(mut self, reason: Reason) -> Self {
        self.reasons.push(reason);
        self
    }

    /// Matches dead letters with this failure class.
    pub fn class(mut self, class: Class) -> Self {
        self.classes.push(class);
        self
    }

    /// Matches dead letters with this error code.
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.codes.push(code.into());
        self
    }

    /// Matches dead letters whose records are of this stream. A dead letter has only the stream's name, so
    /// that streams of the same name in other accounts and regions match as well.
    pub fn stream(mut self, stream: impl Into<StreamId>) -> Self {
        self.streams.push(stream.into());
        self
    }

    /// Matches dead letters whose records are of this shard.
    pub fn shard(mut self, shard: impl Into<String>) -> Self {
        self.shards.push(shard.into());
        self
    }

    /// Matches dead letters whose records have this partition key.
    pub fn partition_key(mut self, key: impl Into<String>) -> Self {
        self.partition_keys.push(key.into());
        self
    }

    /// Matches dead letters whose id is this one, or begins with it.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.ids.push(id.into());
        self
    }

    /// Checks that each stream is a name or an ARN.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.streams
            .iter()
            .try_for_each(|stream| stream.check("Filter::stream"))
    }

    /// Returns true if the filter matches this dead letter.
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        let at = letter.dead_lettered_at;
        self.since.is_none_or(|since| at >= since)
            && self.until.is_none_or(|until| at < until)
            && among(&self.reasons, |reason| *reason == letter.reason)
            && among(&self.classes, |class| *class == letter.class)
            && among(&self.codes, |code| letter.code.as_ref() == Some(code))
            && among(&self.streams, |stream| stream.name() == letter.stream)
            && among(&self.shards, |shard| shard == letter.shard.as_str())
            && among(&self.partition_keys, |key| {
                letter.partition_key.as_ref() == Some(key)
            })
            && among(&self.ids, |id| letter.id.to_string().starts_with(id.as_str()))
    }
}

/// Returns true if one of the values fits, or if there are none.
fn among<T>(values: &[T], fits: impl Fn(&T) -> bool) -> bool {
    values.is_empty() || values.iter().any(fits)
}
