//! The wall clock, which the simulation can set.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Returns the time of day.
#[inline]
pub(crate) fn now() -> SystemTime {
    #[cfg(feature = "__sabotage")]
    return WallClock::now();
    #[cfg(not(feature = "__sabotage"))]
    SystemTime::now()
}

/// A time of day, in nanoseconds since 1970. A difference of two `SystemTime`s costs a call of the standard
/// library; of two integers, it costs one instruction.
///
/// The range is from 1677 to 2262. A time outside it becomes the first or the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UnixTime(i64);

impl UnixTime {
    /// Returns the time of day.
    #[inline]
    pub(crate) fn now() -> Self {
        #[cfg(feature = "__sabotage")]
        return UnixTime::from(WallClock::now());
        #[cfg(not(feature = "__sabotage"))]
        UnixTime::of_system()
    }

    /// Returns the time of day of the machine.
    #[cfg(any(test, not(feature = "__sabotage")))]
    #[inline]
    fn of_system() -> Self {
        #[cfg(unix)]
        {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
            // A machine's clock does not show a year after 2262.
            UnixTime(now.tv_sec.wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec))
        }
        #[cfg(not(unix))]
        UnixTime::from(SystemTime::now())
    }

    /// Creates the time that is these seconds and nanoseconds after 1970.
    #[cfg(any(test, feature = "kinesis"))]
    #[inline]
    pub(crate) fn new(seconds: i64, nanos: i64) -> Self {
        UnixTime(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }

    /// Returns the nanoseconds since an earlier time. `None`: that time is later, or 292 years earlier.
    #[inline]
    pub(crate) fn nanos_since(self, earlier: UnixTime) -> Option<i64> {
        self.0.checked_sub(earlier.0).filter(|nanos| *nanos >= 0)
    }
}

impl From<SystemTime> for UnixTime {
    fn from(time: SystemTime) -> Self {
        let nanos = |distance: Duration| i64::try_from(distance.as_nanos()).unwrap_or(i64::MAX);
        UnixTime(match time.duration_since(UNIX_EPOCH) {
            Ok(after) => nanos(after),
            Err(before) => -nanos(before.duration()),
        })
    }
}

impl From<UnixTime> for SystemTime {
    fn from(UnixTime(nanos): UnixTime) -> Self {
        let distance = Duration::from_nanos(nanos.unsigned_abs());
        match nanos < 0 {
            true => UNIX_EPOCH - distance,
            false => UNIX_EPOCH + distance,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn time_survives_the_conversion_to_nanoseconds_and_back() {
        let nanosecond = Duration::from_nanos(1);
        for time in [
            UNIX_EPOCH,
            UNIX_EPOCH + SECOND + nanosecond,
            UNIX_EPOCH - SECOND - nanosecond,
            SystemTime::now(),
        ] {
            assert_eq!(SystemTime::from(UnixTime::from(time)), time);
        }
        let of_parts = UnixTime::new(-1, 999_999_999);
        assert_eq!(SystemTime::from(of_parts), UNIX_EPOCH - nanosecond);
    }

    #[test]
    fn time_beyond_the_range_becomes_its_end() {
        let years = Duration::from_secs(400 * 365 * 24 * 60 * 60);
        assert_eq!(UnixTime::from(UNIX_EPOCH + years), UnixTime(i64::MAX));
        assert_eq!(UnixTime::from(UNIX_EPOCH - years), UnixTime(-i64::MAX));
        assert_eq!(UnixTime::new(i64::MAX, 0), UnixTime(i64::MAX));
        assert_eq!(UnixTime::new(i64::MIN, 0), UnixTime(i64::MIN));
        for end in [i64::MIN, i64::MAX] {
            let _ = SystemTime::from(UnixTime(end));
        }
    }

    #[test]
    fn only_an_earlier_time_has_an_age() {
        let (early, late) = (UnixTime::from(UNIX_EPOCH), UnixTime::from(UNIX_EPOCH + SECOND));
        assert_eq!(late.nanos_since(early), Some(1_000_000_000));
        assert_eq!(early.nanos_since(early), Some(0));
        assert_eq!(early.nanos_since(late), None);
        assert_eq!(late.nanos_since(UnixTime(i64::MIN)), None);
    }

    #[test]
    fn both_readings_show_the_same_time() {
        let before = UnixTime::from(SystemTime::now());
        let read = UnixTime::of_system();
        let after = UnixTime::from(SystemTime::now());
        assert!(before.0 <= read.0 && read.0 <= after.0);
    }
}
