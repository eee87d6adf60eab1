//! Rewinds a shard to an earlier position.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::{OperatorError, Shards};
use crate::checkpoint::{Checkpoint, ShardKey};
use crate::record::{Position, ShardId};

/// The maximum difference between the clocks of this machine and of Kinesis.
const SKEW: Duration = Duration::from_secs(60);

/// A rewind that was checked and is not carried out yet.
#[must_use = "a rewind does nothing until `carry_out` is called"]
pub struct Rewind<'a> {
    shards: &'a Shards,
    key: ShardKey,
    from: Checkpoint,
    to: Position,
    children: Vec<ShardId>,
}

impl Shards {
    /// Checks whether a shard can be rewound to this position. The shard's consumer receives all records
    /// after the position again, including settled ones.
    ///
    /// A time means the first record that arrived then or later. A record as position counts as settled, as
    /// do all records before it; in a KPL aggregate, up to its sub-sequence number. To process a record
    /// again, rewind to the time of its arrival.
    ///
    /// Fails with [`Alive`](OperatorError::Alive), [`NotBegun`](OperatorError::NotBegun),
    /// [`Forward`](OperatorError::Forward) or [`NoSuchRecord`](OperatorError::NoSuchRecord), or if the store
    /// or the stream cannot be read.
    pub async fn rewind(&self, shard: &ShardId, to: Position) -> Result<Rewind<'_>, OperatorError> {
        let key = self.key(shard.clone());
        // Fails at once if the names are wrong, instead of after the failover time.
        self.load(&key).await?;
        self.refuse_if_alive(&key).await?;
        let from = self.load(&key).await?;
        self.check_way_back(shard, &from, &to).await?;
        let children = match from.position() {
            Position::ShardEnd => self.children(shard).await?,
            _ => Vec::new(),
        };
        Ok(Rewind {
            shards: self,
            key,
            from,
            to,
            children,
        })
    }

    /// Checks that the rewind passes over no unsettled record, and that the shard has the record of the new
    /// position.
    async fn check_way_back(
        &self,
        shard: &ShardId,
        from: &Checkpoint,
        to: &Position,
    ) -> Result<(), OperatorError> {
        let stands = from.position();
        let is_back = match (to, stands) {
            (Position::TrimHorizon, _) => true,
            (Position::ShardEnd, _) => false,
            (Position::AtTimestamp { millis }, Position::ShardEnd) => at(*millis) <= SystemTime::now(),
            (_, Position::ShardEnd) => true,
            (Position::Record { .. }, Position::Record { .. }) => to <= stands,
            _ => {
                let found = self.unsettled(shard, from, 1).await?;
                match (found.records.first(), to) {
                    (Some(first), Position::AtTimestamp { millis }) => {
                        first.arrival().is_some_and(|arrival| at(*millis) <= arrival)
                    }
                    (Some(first), to) => !to.covers(first),
                    // Records that arrive now may not be visible yet.
                    (None, Position::AtTimestamp { millis }) => at(*millis) + SKEW <= found.asked_at,
                    (None, _) => false,
                }
            }
        };
        if !is_back {
            return Err(OperatorError::Forward {
                shard: shard.clone(),
                position: Box::new(stands.clone()),
                to: Box::new(to.clone()),
            });
        }
        match to {
            Position::Record { sequence_number, .. } if !self.holds(shard, to, sequence_number).await? => {
                Err(OperatorError::NoSuchRecord {
                    shard: shard.clone(),
                    sequence_number: sequence_number.clone(),
                })
            }
            _ => Ok(()),
        }
    }
}

impl Rewind<'_> {
    /// Returns the checkpoint of the shard before the rewind.
    pub fn from(&self) -> &Checkpoint {
        &self.from
    }

    /// Returns the new position.
    pub fn to(&self) -> &Position {
        &self.to
    }

    /// Returns the children of the shard if the shard is at its end, and none otherwise. Their records that
    /// were read are not read again.
    ///
    /// A consumer that has seen the end of the shard reads the shard again only after a restart. It then
    /// starts the children once the shard is at its end.
    pub fn children(&self) -> &[ShardId] {
        &self.children
    }

    /// Moves the shard to the new position. Records that were settled ahead of the old position are processed
    /// again as well.
    ///
    /// If this future is dropped before it completes, another worker can take the shard after the failover
    /// time.
    pub async fn carry_out(&self) -> Result<Checkpoint, OperatorError> {
        let (hold, stands) = self.shards.hold(&self.key).await?;
        let work = async {
            if stands != self.from {
                self.shards
                    .check_way_back(&self.key.shard, &stands, &self.to)
                    .await?;
            }
            let mut to = Checkpoint::at(self.to.clone());
            if let Position::AtTimestamp { millis } = self.to {
                // Distinguishes this checkpoint from the start time of an application, which also applies to
                // shards without a row.
                to = to.with_read_until(at(millis));
            }
            hold.save(&to).await?;
            Ok(to)
        };
        hold.during(work).await
    }
}

fn at(millis: u64) -> SystemTime {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis));
    // No clock shows such a time, so that no record has arrived since.
    time.unwrap_or(SystemTime::now() + SKEW)
}

impl fmt::Debug for Rewind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rewind")
            .field("shard", &self.key.shard)
            .field("from", &self.from)
            .field("to", &self.to)
            .field("children", &self.children)
            .finish_non_exhaustive()
    }
}
