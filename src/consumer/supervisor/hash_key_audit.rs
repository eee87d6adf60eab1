//! Checks whether the unfinished shards cover all hash keys.

use std::time::Duration;

use rand::rngs::SmallRng;

use crate::consumer::shards::lineage::Hole;
use crate::protection::{Backoff, RetryTimer};

/// Delay between listings while some hash keys are not covered: short directly after a reshard, longer if
/// that does not change.
const DELAY: Backoff = Backoff::exponential()
    .base(Duration::from_secs(1))
    .cap(Duration::from_secs(60));
/// The number of consecutive listings with uncovered hash keys before they are reported. A single listing may
/// show a moment in between (KCL waits for as many).
const REPORTED_AFTER: u32 = 3;

/// Counts the consecutive listings that left hash keys uncovered.
pub(super) struct HashKeyAudit {
    listings: RetryTimer,
}

/// Hash keys that a listing left uncovered.
#[derive(Debug)]
pub(super) struct Uncovered {
    pub(super) hole: Hole,
    /// True if the hash keys are uncovered for so long that a lagging listing is no explanation.
    pub(super) is_lasting: bool,
    /// Delay before the next listing.
    pub(super) delay: Duration,
}

impl HashKeyAudit {
    pub(super) fn new(rng: SmallRng) -> Self {
        HashKeyAudit {
            listings: RetryTimer::new(DELAY, rng),
        }
    }

    /// Takes the hole of the newest listing. A gap that comes from a listing that lags behind closes by
    /// itself.
    pub(super) fn observe(&mut self, hole: Option<Hole>) -> Option<Uncovered> {
        let Some(hole) = hole else {
            self.listings.reset();
            return None;
        };
        let delay = self.listings.next_delay();
        Some(Uncovered {
            hole,
            is_lasting: self.listings.failures() >= REPORTED_AFTER,
            delay,
        })
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn hole_of_three_listings_in_a_row_is_lasting() {
        let mut audit = HashKeyAudit::new(SmallRng::seed_from_u64(7));
        let hole = Some(Hole { first: 0, last: 9 });
        let mut lasting = |hole| audit.observe(hole).map(|uncovered| uncovered.is_lasting);
        assert_eq!([hole; 2].map(&mut lasting), [Some(false); 2]);
        assert_eq!(lasting(None), None);
        let expected = [Some(false), Some(false), Some(true), Some(true)];
        assert_eq!([hole; 4].map(&mut lasting), expected);
    }
}
