//! A row of the lease table, with the names and types of KCL's `DynamoDBLeaseSerializer`.

use std::ops::RangeInclusive;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;

use crate::checkpoint::{Checkpoint, CheckpointError, NewShard, SettledAhead, ShardKey, SharedLease};
use crate::failure::BoxError;
use crate::record::{Position, ShardId};

pub(super) use crate::aws::table::Item;
use crate::aws::table::attribute::number;
pub(super) use crate::aws::table::attribute::{numeral, string, text};

pub(super) const KEY: &str = "leaseKey";
pub(super) const OWNER: &str = "leaseOwner";
pub(super) const COUNTER: &str = "leaseCounter";
pub(super) const SWITCHES: &str = "ownerSwitchesSinceCheckpoint";
pub(super) const CHECKPOINT: &str = "checkpoint";
pub(super) const SUB: &str = "checkpointSubSequenceNumber";
pub(super) const PENDING: [&str; 3] = [
    "pendingCheckpoint",
    "pendingCheckpointSubSequenceNumber",
    "pendingCheckpointState",
];
const PARENTS: &str = "parentShardId";
pub(super) const CHILDREN: &str = "childShardIds";
pub(super) const THROUGHPUT: &str = "throughputKBps";
const FIRST_HASH_KEY: &str = "startingHashKey";
const LAST_HASH_KEY: &str = "endingHashKey";
/// The worker that releases the shard during a hand-over (KCL 3).
pub(super) const CHECKPOINT_OWNER: &str = "checkpointOwner";
/// The kind of a row: KCL 3.5 keeps rows that are not leases in the same table.
pub(super) const ENTITY: &str = "entityType";
const LEASE: &str = "LEASE";

// redrive's own columns: KCL leaves unknown columns unchanged.
/// The records that are settled ahead of the checkpoint.
pub(super) const AHEAD: &str = "redriveAhead";
/// The starts that did not get past the checkpoint.
pub(super) const STARTS: &str = "redriveStarts";
/// The time up to which all records were read and settled, in milliseconds since 1970.
pub(super) const READ_UNTIL: &str = "redriveReadUntil";
/// The creation time of the stream that the checkpoint belongs to, in milliseconds since 1970.
pub(super) const STREAM_CREATED: &str = "redriveStreamCreated";
/// The stream's name, which KCL's own rows lack if KCL reads a single stream.
pub(super) const STREAM: &str = "redriveStream";

const TRIM_HORIZON: &str = "TRIM_HORIZON";
const LATEST: &str = "LATEST";
const AT_TIMESTAMP: &str = "AT_TIMESTAMP";
pub(super) const SHARD_END: &str = "SHARD_END";

/// The part of a row that redrive reads.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) owner: Option<String>,
    pub(super) counter: u64,
    pub(super) checkpoint: Checkpoint,
    /// The worker that still works on the shard during a hand-over to `owner`.
    pub(super) checkpoint_owner: Option<String>,
    parents: Vec<ShardId>,
    children: Vec<ShardId>,
    hash_keys: Option<RangeInclusive<u128>>,
    pub(super) throughput: Option<f64>,
}

impl Row {
    pub(super) fn into_lease(self, key: ShardKey) -> SharedLease {
        SharedLease {
            key,
            checkpoint: self.checkpoint,
            parents: self.parents,
            children: self.children,
            hash_keys: self.hash_keys,
            owner: self.owner,
            handed_over_by: self.checkpoint_owner,
            counter: self.counter,
            throughput: self.throughput,
        }
    }

    /// Returns the worker that works on the shard.
    pub(super) fn holder(&self) -> Option<&str> {
        self.checkpoint_owner.as_deref().or(self.owner.as_deref())
    }

    /// Reads a row. A malformed row is an error, because redrive does not guess.
    pub(super) fn read(key: &ShardKey, item: &Item) -> Result<Self, CheckpointError> {
        if let Some(stream) = text(item, STREAM)
            && *stream != *key.stream
        {
            return Err(CheckpointError::OtherStream {
                shard: key.shard.clone(),
                stream: stream.to_owned(),
            });
        }
        Row::parse(item).map_err(|source| CheckpointError::Corrupt {
            shard: key.shard.clone(),
            text: described(item),
            source,
        })
    }

    fn parse(item: &Item) -> Result<Self, BoxError> {
        if let Some(entity) = text(item, ENTITY).filter(|entity| *entity != LEASE) {
            return Err(format!("the row's entityType is {entity}, not {LEASE}").into());
        }
        let position = position(
            text(item, CHECKPOINT).ok_or("the row has no checkpoint")?,
            number(item, SUB)?.unwrap_or(0),
        )?;
        let read_until = number(item, READ_UNTIL).ok().flatten();
        let stream_created = number(item, STREAM_CREATED).ok().flatten();
        let starts = text(item, STARTS).and_then(|starts| starts.parse().ok());
        let checkpoint = Checkpoint::at(position)
            .with_read_until_millis(read_until)
            .with_stream_created_millis(stream_created)
            .with_starts(starts.unwrap_or_default());
        Ok(Row {
            owner: text(item, OWNER).map(str::to_owned),
            counter: number(item, COUNTER)?.ok_or("the row has no leaseCounter")?,
            checkpoint: match ahead(item) {
                Some(ahead) => checkpoint.with_ahead(ahead),
                None => checkpoint,
            },
            checkpoint_owner: text(item, CHECKPOINT_OWNER).map(str::to_owned),
            parents: shards(item, PARENTS),
            children: shards(item, CHILDREN),
            hash_keys: hash_keys(item),
            throughput: throughput(item),
        })
    }
}

fn shards(item: &Item, column: &str) -> Vec<ShardId> {
    let names = item.get(column).and_then(|names| names.as_ss().ok());
    let names = names.into_iter().flatten();
    names.map(|name| ShardId::from(name.as_str())).collect()
}

/// Returns the range of hash keys; `None` if it is missing or malformed, which concerns no record.
fn hash_keys(item: &Item) -> Option<RangeInclusive<u128>> {
    let key = |column| text(item, column)?.parse().ok();
    Some(key(FIRST_HASH_KEY)?..=key(LAST_HASH_KEY)?)
}

fn throughput(item: &Item) -> Option<f64> {
    let throughput: f64 = item.get(THROUGHPUT)?.as_n().ok()?.parse().ok()?;
    (throughput.is_finite() && throughput >= 0.0).then_some(throughput)
}

/// Returns a throughput with as many decimals as KCL writes.
pub(super) fn kib_per_second(throughput: f64) -> AttributeValue {
    AttributeValue::N(format!("{throughput:.6}"))
}

/// Returns a new row with the columns that KCL writes, and the name of the stream.
pub(super) fn new(shard: &NewShard) -> Item {
    let (checkpoint, sub) = columns(shard.checkpoint.position());
    let mut item = Item::from([
        (KEY.into(), string(shard.key.shard.as_str())),
        (COUNTER.into(), numeral(0)),
        (SWITCHES.into(), numeral(0)),
        (CHECKPOINT.into(), checkpoint),
        (SUB.into(), sub),
        (STREAM.into(), string(&shard.key.stream)),
    ]);
    if let Some(millis) = shard.checkpoint.read_until_millis() {
        item.insert(READ_UNTIL.into(), numeral(millis));
    }
    if let Some(millis) = shard.checkpoint.stream_created_millis() {
        item.insert(STREAM_CREATED.into(), numeral(millis));
    }
    if let Some(ahead) = shard.checkpoint.ahead() {
        item.insert(AHEAD.into(), blob(ahead.to_bytes()));
    }
    if let Some(starts) = shard.checkpoint.starts() {
        item.insert(STARTS.into(), string(&starts.to_string()));
    }
    if let Some(parents) = names(&shard.parents) {
        item.insert(PARENTS.into(), parents);
    }
    if let Some(hash_keys) = &shard.hash_keys {
        item.insert(FIRST_HASH_KEY.into(), string(&hash_keys.start().to_string()));
        item.insert(LAST_HASH_KEY.into(), string(&hash_keys.end().to_string()));
    }
    item
}

/// Returns a set of names; `None` for no names, because DynamoDB allows no empty set.
pub(super) fn names(shards: &[ShardId]) -> Option<AttributeValue> {
    let names = shards.iter().map(|shard| shard.as_str().to_owned());
    (!shards.is_empty()).then(|| AttributeValue::Ss(names.collect()))
}

/// Returns a position as KCL writes it: `checkpoint` and `checkpointSubSequenceNumber`.
pub(super) fn columns(position: &Position) -> (AttributeValue, AttributeValue) {
    match position {
        Position::AtTimestamp { millis } => (string(AT_TIMESTAMP), numeral(*millis)),
        Position::TrimHorizon => (string(TRIM_HORIZON), numeral(0)),
        Position::Record {
            sequence_number,
            sub_sequence_number,
        } => (string(sequence_number.as_str()), numeral(*sub_sequence_number)),
        Position::ShardEnd => (string(SHARD_END), numeral(0)),
    }
}

/// The start of a row with KCL's own LATEST or AT_TIMESTAMP, which do not say when they were written. The
/// records that arrived since are unknown, so the shard is read from its oldest record. Unwanted records may
/// be processed, but none is lost.
const SOME_TIME: Position = Position::AtTimestamp { millis: 0 };

fn position(checkpoint: &str, sub: u64) -> Result<Position, BoxError> {
    Ok(match checkpoint {
        TRIM_HORIZON => Position::TrimHorizon,
        SHARD_END => Position::ShardEnd,
        LATEST => SOME_TIME,
        AT_TIMESTAMP => Position::AtTimestamp { millis: sub },
        number => Position::Record {
            sequence_number: number.parse()?,
            sub_sequence_number: sub,
        },
    })
}

fn ahead(item: &Item) -> Option<SettledAhead> {
    let stored = item.get(AHEAD)?.as_b().ok()?;
    let ahead = SettledAhead::from_bytes(stored.as_ref());
    if ahead.is_err() {
        let shard = text(item, KEY);
        tracing::warn!(
            shard,
            "settled-ahead list ignored: unreadable; its records are processed again"
        );
    }
    ahead.ok()
}

pub(super) fn blob(bytes: Vec<u8>) -> AttributeValue {
    AttributeValue::B(Blob::new(bytes))
}

/// Describes a row so that an operator can find the defect. The text contains nothing from a payload.
fn described(item: &Item) -> String {
    let of = |name| match item.get(name) {
        Some(AttributeValue::S(text) | AttributeValue::N(text)) => format!("{name}={text}"),
        Some(_) => format!("{name}=(of another type)"),
        None => format!("no {name}"),
    };
    let text = [CHECKPOINT, SUB, COUNTER, ENTITY].map(of).join(", ");
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ShardKey {
        ShardKey::new("billing", "orders", "shardId-000000000001".into())
    }

    fn item(columns: &[(&str, AttributeValue)]) -> Item {
        let own = columns
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()));
        own.collect()
    }

    fn at(position: Position) -> Item {
        let (checkpoint, sub) = columns(&position);
        item(&[(CHECKPOINT, checkpoint), (SUB, sub), (COUNTER, numeral(3))])
    }

    #[test]
    fn each_position_reads_back() {
        for position in [
            Position::TrimHorizon,
            Position::ShardEnd,
            Position::AtTimestamp {
                millis: 1_700_000_000_123,
            },
            Position::Record {
                sequence_number: "49590338271490256608559692538361571095921575989136588898"
                    .parse()
                    .expect("digits"),
                sub_sequence_number: 7,
            },
        ] {
            let row = Row::read(&key(), &at(position.clone())).expect("well formed");
            assert_eq!(row.checkpoint, Checkpoint::at(position));
            assert_eq!((row.counter, row.holder()), (3, None));
        }
    }

    #[test]
    fn a_time_that_nobody_wrote_down_is_before_all_that_there_is() {
        for name in [LATEST, AT_TIMESTAMP] {
            let row = item(&[
                (CHECKPOINT, string(name)),
                (SUB, numeral(0)),
                (COUNTER, numeral(0)),
            ]);
            let row = Row::read(&key(), &row).expect("well formed");
            assert_eq!(*row.checkpoint.position(), Position::AtTimestamp { millis: 0 });
        }
    }

    #[test]
    fn the_one_that_lets_go_holds_it_until_it_has() {
        let mut row = at(Position::TrimHorizon);
        row.insert(OWNER.into(), string("new"));
        assert_eq!(
            Row::read(&key(), &row).expect("well formed").holder(),
            Some("new")
        );
        row.insert(CHECKPOINT_OWNER.into(), string("old"));
        assert_eq!(
            Row::read(&key(), &row).expect("well formed").holder(),
            Some("old")
        );
    }

    #[test]
    fn what_cannot_be_understood_is_not_guessed() {
        let whole = at(Position::TrimHorizon);
        for (name, value) in [
            (CHECKPOINT, Some(string("HORIZON"))),
            (CHECKPOINT, Some(numeral(5))),
            (CHECKPOINT, None),
            (COUNTER, None),
            (COUNTER, Some(AttributeValue::N("-1".into()))),
            (SUB, Some(string("0"))),
            (ENTITY, Some(string("LEADER"))),
        ] {
            let mut row = whole.clone();
            match value {
                Some(value) => row.insert(name.to_owned(), value),
                None => row.remove(name),
            };
            match Row::read(&key(), &row) {
                Err(CheckpointError::Corrupt { shard, .. }) => assert_eq!(shard, key().shard),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    /// KCL once wrote a number into `pendingCheckpointState` by mistake, and it writes states of its own
    /// there.
    #[test]
    fn what_kcl_keeps_for_itself_does_not_matter() {
        for (name, value) in [
            (PENDING[2], numeral(0)),
            (PENDING[2], blob(vec![1, 2, 3])),
            (PENDING[0], string(TRIM_HORIZON)),
            ("throughputKBps", AttributeValue::N("0.5".into())),
            (ENTITY, string(LEASE)),
        ] {
            let mut row = at(Position::TrimHorizon);
            row.insert(name.into(), value);
            assert!(Row::read(&key(), &row).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_row_of_another_stream_is_left_alone() {
        let mut row = at(Position::TrimHorizon);
        row.insert(STREAM.into(), string("payments"));
        match Row::read(&key(), &row) {
            Err(CheckpointError::OtherStream { stream, .. }) => assert_eq!(stream, "payments"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_new_row_reads_as_what_it_was_made_of() {
        let shard = NewShard {
            parents: vec!["a".into(), "b".into()],
            hash_keys: Some(5..=u128::MAX),
            ..NewShard::new(key(), Checkpoint::at(Position::TrimHorizon))
        };
        let row = new(&shard);
        assert_eq!(row[PARENTS], AttributeValue::Ss(vec!["a".into(), "b".into()]));
        assert_eq!(
            row[LAST_HASH_KEY],
            string("340282366920938463463374607431768211455")
        );
        let read = Row::read(&key(), &row).expect("well formed");
        let lease = read.into_lease(key());
        assert_eq!((lease.counter, lease.checkpoint), (0, shard.checkpoint));
        assert_eq!((lease.parents, lease.hash_keys), (shard.parents, shard.hash_keys));
    }
}
