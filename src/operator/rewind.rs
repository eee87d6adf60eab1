//! Back to where a shard stood before.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::{OperatorError, Shards};
use crate::checkpoint::{Checkpoint, ShardKey};
use crate::record::{Position, ShardId};

/// By how much the clocks of this machine and of Kinesis may differ.
const SKEW: Duration = Duration::from_secs(60);

/// A way back that is to be gone, and is not yet.
#[must_use = "nothing is moved before it is carried out"]
pub struct Rewind<'a> {
    shards: &'a Shards,
    key: ShardKey,
    from: Checkpoint,
    to: Position,
    children: Vec<ShardId>,
}

impl Shards {
    /// Looks whether a shard can go back to this position. Everything behind it comes again, also what is settled.
    ///
    /// A time is the first record that arrived then or later. A record counts as settled, and so does everything before
    /// it; of one that the KPL has aggregated up to its sub-sequence number. To have a record again, go back to the time
    /// of its arrival.
    ///
    /// [`Alive`](OperatorError::Alive), [`NotBegun`](OperatorError::NotBegun), [`Forward`](OperatorError::Forward),
    /// [`NoSuchRecord`](OperatorError::NoSuchRecord), or store or stream cannot be read.
    pub async fn rewind(&self, shard: &ShardId, to: Position) -> Result<Rewind<'_>, OperatorError> {
        let key = self.key(shard.clone());
        // Its names are wrong: that is worth no waiting.
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

    /// Whether nothing that is not settled would be passed over.
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
                    // What arrives now may not be seen yet.
                    (None, Position::AtTimestamp { millis }) => at(*millis) + SKEW <= found.asked_at,
                    (None, _) => false,
                }
            }
        };
        if !is_back {
            return Err(OperatorError::Forward {
                shard: shard.clone(),
                position: stands.clone(),
                to: to.clone(),
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
    /// Where the shard stands.
    pub fn from(&self) -> &Checkpoint {
        &self.from
    }

    /// Where it is to go.
    pub fn to(&self) -> &Position {
        &self.to
    }

    /// Of a shard that stands at its end: those that came of it. What was read of them stays read. A consumer that has seen
    /// the end reads the shard again only when it is started again; then it begins them once the shard is at its end.
    pub fn children(&self) -> &[ShardId] {
        &self.children
    }

    /// Moves the position. What was settled ahead of the old one comes again as well.
    ///
    /// Dropped before its end it leaves the shard to its owner after the failover time.
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
                // What tells it from the time at which an application begins, and shards without a row with it.
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
    // No clock shows it, and so nothing has arrived since.
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
