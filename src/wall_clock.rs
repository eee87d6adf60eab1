//! The wall clock, which the simulation can set.

use std::time::SystemTime;

/// Returns the time of day.
#[inline]
pub(crate) fn now() -> SystemTime {
    #[cfg(feature = "__sabotage")]
    return WallClock::now();
    #[cfg(not(feature = "__sabotage"))]
    SystemTime::now()
}

#[cfg(feature = "__sabotage")]
mod simulated {
    use std::cell::Cell;
    use std::time::SystemTime;

    use tokio::time::Instant;

    thread_local! {
        /// The simulated time of day, and the moment on tokio's clock when it was set.
        static SET: Cell<Option<(SystemTime, Instant)>> = const { Cell::new(None) };
    }

    /// The wall clock of this thread, for the simulation.
    #[derive(Debug)]
    #[non_exhaustive]
    pub struct WallClock;

    impl WallClock {
        /// Sets the time of day. From then on it advances with tokio's clock.
        pub fn set(time: SystemTime) {
            SET.set(Some((time, Instant::now())));
        }

        /// Returns the time of day, which is the machine's until it is set.
        pub fn now() -> SystemTime {
            let set = SET.get().map(|(time, since)| time + since.elapsed());
            set.unwrap_or_else(SystemTime::now)
        }
    }
}

#[cfg(feature = "__sabotage")]
pub use simulated::WallClock;
