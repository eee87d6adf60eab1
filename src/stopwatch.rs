//! Measures the time that a call takes, with few instructions if the call is ready at once.

use std::time::Duration;

use tokio::time::Instant;

/// The time since the start of a call.
///
/// A call that is ready at once is measured on the system's clock in nanoseconds: a difference of integers costs
/// one instruction, and that of two `Instant`s a call of the standard library. From the moment that the call
/// [waits](Stopwatch::wait), tokio's clock counts, which a test can pause and advance.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stopwatch {
    /// Nothing has waited. The start of the call, in nanoseconds on the system's monotonic clock.
    #[cfg(unix)]
    Running(i64),
    /// The start of the call on tokio's clock.
    Waiting(Instant),
}

impl Stopwatch {
    #[inline]
    pub(crate) fn start() -> Self {
        #[cfg(unix)]
        return Stopwatch::Running(nanos());
        #[cfg(not(unix))]
        Stopwatch::Waiting(Instant::now())
    }

    /// Tells that the call waits for something.
    #[inline]
    pub(crate) fn wait(&mut self) {
        #[cfg(unix)]
        if matches!(self, Stopwatch::Running(_)) {
            let now = Instant::now();
            *self = Stopwatch::Waiting(now.checked_sub(self.elapsed()).unwrap_or(now));
        }
    }

    #[inline]
    pub(crate) fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.elapsed_nanos().unsigned_abs())
    }

    /// Returns the time since the start in nanoseconds, which is never negative.
    #[inline]
    pub(crate) fn elapsed_nanos(&self) -> i64 {
        match self {
            #[cfg(unix)]
            Stopwatch::Running(start) => (nanos() - start).max(0),
            Stopwatch::Waiting(start) => i64::try_from(start.elapsed().as_nanos()).unwrap_or(i64::MAX),
        }
    }
}

/// Returns the time on the system's monotonic clock. It starts when the machine does, so that the nanoseconds of
/// centuries have room.
#[cfg(unix)]
#[inline]
fn nanos() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[tokio::test(start_paused = true)]
    async fn call_that_is_ready_at_once_is_measured_on_the_systems_clock() {
        let (before, watch) = (std::time::Instant::now(), Stopwatch::start());
        std::thread::sleep(Duration::from_millis(5));
        let elapsed = watch.elapsed();
        assert!(Duration::from_millis(5) <= elapsed && elapsed <= before.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn call_that_waits_is_measured_on_tokios_clock() {
        let mut watch = Stopwatch::start();
        std::thread::sleep(Duration::from_millis(5));
        watch.wait();
        advance(HOUR).await;
        let elapsed = watch.elapsed();
        assert!(HOUR + Duration::from_millis(5) <= elapsed && elapsed < HOUR * 2);
        watch.wait();
        assert_eq!(watch.elapsed(), elapsed, "it waits already");
    }
}
