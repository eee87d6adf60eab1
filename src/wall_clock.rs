//! The time of day, which the simulation sets.

use std::time::SystemTime;

/// The time of day.
#[inline]
pub(crate) fn now() -> SystemTime {
    #[cfg(feature = "sabotage")]
    if let Some(now) = simulated::now() {
        return now;
    }
    SystemTime::now()
}

#[cfg(feature = "sabotage")]
mod simulated {
    use std::cell::Cell;
    use std::time::SystemTime;

    use tokio::time::Instant;

    thread_local! {
        /// A time of day, and when it was that.
        static SET: Cell<Option<(SystemTime, Instant)>> = const { Cell::new(None) };
    }

    /// The time of day on this thread, for the simulation.
    #[derive(Debug)]
    #[non_exhaustive]
    pub struct WallClock;

    impl WallClock {
        /// It is this time now; from then on it goes with tokio's clock.
        pub fn set(time: SystemTime) {
            SET.set(Some((time, Instant::now())));
        }
    }

    pub(super) fn now() -> Option<SystemTime> {
        SET.get().map(|(time, since)| time + since.elapsed())
    }
}

#[cfg(feature = "sabotage")]
pub use simulated::WallClock;
