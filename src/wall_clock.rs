//! The wall clock, which the simulation can set.

use std::time::SystemTime;

use tokio::time::Instant;

/// Returns the time of day.
#[inline]
pub(crate) fn now() -> SystemTime {
    #[cfg(feature = "__sabotage")]
    return WallClock::now();
    #[cfg(not(feature = "__sabotage"))]
    SystemTime::now()
}

/// Returns the time of day at an instant of the last few milliseconds. Cheaper than [`now`], because it reads the
/// clock only every 100 ms: a change of the machine's clock shows after that time.
#[inline]
pub(crate) fn at(instant: Instant) -> SystemTime {
    // The simulation has many clocks in one thread.
    #[cfg(feature = "__sabotage")]
    let at = |_| now();
    #[cfg(not(feature = "__sabotage"))]
    let at = cached::at;
    at(instant)
}

#[cfg(not(feature = "__sabotage"))]
mod cached {
    use std::cell::Cell;
    use std::time::{Duration, SystemTime};

    use tokio::time::Instant;

    const READ_AGAIN_AFTER: Duration = Duration::from_millis(100);

    thread_local! {
        /// The last reading of the clock, and its moment on tokio's clock.
        static LAST: Cell<Option<(Instant, SystemTime)>> = const { Cell::new(None) };
    }

    #[inline]
    pub(super) fn at(instant: Instant) -> SystemTime {
        if let Some((read, time)) = LAST.get()
            && let Some(since) = instant.checked_duration_since(read)
            && since < READ_AGAIN_AFTER
        {
            return time + since;
        }
        let time = super::now();
        LAST.set(Some((instant, time)));
        time
    }
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
