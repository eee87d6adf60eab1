//! The time at which the shards are listed again, even if no shard has ended.

use std::time::Duration;

use tokio::time::Instant;

/// The time of the next check for shards that may start. `None`: no check is due before a shard ends.
#[derive(Debug, Default)]
pub(super) struct NextCheck(Option<Instant>);

impl NextCheck {
    /// Schedules a check after this delay. An earlier one stays.
    pub(super) fn within(&mut self, delay: Duration) {
        let at = Instant::now() + delay;
        self.0 = Some(self.0.map_or(at, |before| before.min(at)));
    }

    /// Removes the check, because the shards are being listed.
    pub(super) fn clear(&mut self) {
        self.0 = None;
    }

    pub(super) fn time(&self) -> Option<Instant> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn earliest_check_stays() {
        let (mut next, secs) = (NextCheck::default(), Duration::from_secs);
        next.within(secs(30));
        next.within(secs(5));
        next.within(secs(60));
        assert_eq!(next.time(), Some(Instant::now() + secs(5)));
        next.clear();
        assert_eq!(next.time(), None);
    }
}
