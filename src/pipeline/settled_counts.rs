//! The numbers of settled records, by kind of settlement.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::settlement::Settled;

/// The counts of one task, which shares them at the end of each turn.
#[derive(Debug, Default)]
pub(super) struct Counted {
    processed: u64,
    duplicates: u64,
    dead_lettered: u64,
}

impl Counted {
    #[inline]
    pub(super) fn count(&mut self, settled: Settled) {
        match settled {
            Settled::Processed => self.processed += 1,
            Settled::Duplicate => self.duplicates += 1,
            Settled::DeadLettered(_) => self.dead_lettered += 1,
        }
    }

    /// Adds these counts to the shared ones.
    pub(super) fn share(&mut self, counts: &SettledCounts) {
        let counted = std::mem::take(self);
        for (count, more) in [
            (&counts.processed, counted.processed),
            (&counts.duplicates, counted.duplicates),
            (&counts.dead_lettered, counted.dead_lettered),
        ] {
            if more > 0 {
                count.fetch_add(more, Ordering::Relaxed);
            }
        }
    }
}

/// The counts of all shards of a consumer.
#[derive(Debug, Default)]
pub(crate) struct SettledCounts {
    processed: AtomicU64,
    duplicates: AtomicU64,
    dead_lettered: AtomicU64,
}

impl SettledCounts {
    #[cfg(feature = "kinesis")]
    pub(crate) fn processed(&self) -> u64 {
        self.processed.load(Ordering::Relaxed)
    }

    #[cfg(feature = "kinesis")]
    pub(crate) fn duplicates(&self) -> u64 {
        self.duplicates.load(Ordering::Relaxed)
    }

    #[cfg(feature = "kinesis")]
    pub(crate) fn dead_lettered(&self) -> u64 {
        self.dead_lettered.load(Ordering::Relaxed)
    }
}
