//! The delay before the next attempt.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

use crate::config::ConfigError;

/// The growth of delays from retry to retry, before jitter.
///
/// | setting | default of [`exponential`](Backoff::exponential) |
/// |---|---|
/// | [`base`](Backoff::base) | 100 ms |
/// | [`factor`](Backoff::factor) | 2 |
/// | [`cap`](Backoff::cap) | 10 s |
///
/// The builder that takes the backoff checks it: a wrong factor or cap is an error of `build()`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    base: Duration,
    factor: f64,
    cap: Duration,
}

impl Backoff {
    /// Creates a backoff with the same delay before every retry.
    pub const fn constant(delay: Duration) -> Self {
        Backoff {
            base: delay,
            factor: 1.0,
            cap: delay,
        }
    }

    /// Creates a backoff of `base × factorⁿ`, limited by the cap, with the defaults above.
    pub const fn exponential() -> Self {
        Backoff {
            base: Duration::from_millis(100),
            factor: 2.0,
            cap: Duration::from_secs(10),
        }
    }

    /// Sets the delay before the first retry.
    #[must_use]
    pub const fn base(mut self, base: Duration) -> Self {
        self.base = base;
        self
    }

    /// Sets the factor between one delay and the next: finite, and at least 1.
    #[must_use]
    pub const fn factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    /// Sets the maximum delay, jitter included: at least the base.
    #[must_use]
    pub const fn cap(mut self, cap: Duration) -> Self {
        self.cap = cap;
        self
    }

    /// Returns the delay before retry number `retry`, which counts from 0. The delay never exceeds the cap.
    pub fn delay(&self, retry: u32) -> Duration {
        let exponent = i32::try_from(retry).unwrap_or(i32::MAX);
        self.bounded(self.base.as_secs_f64() * self.factor.powi(exponent))
    }

    /// Converts seconds into a delay, limited by the cap. A number too large for a duration becomes the cap.
    fn bounded(&self, seconds: f64) -> Duration {
        Duration::try_from_secs_f64(seconds).map_or(self.cap, |delay| delay.min(self.cap))
    }

    /// Checks the settings. `setting` is the method that takes the backoff.
    pub(crate) fn validate(&self, setting: &'static str) -> Result<(), ConfigError> {
        let Backoff { base, factor, cap } = self;
        if !(*factor >= 1.0 && factor.is_finite()) {
            let problem = format!("the backoff's factor must be finite and at least 1, not {factor}");
            return Err(ConfigError::new(setting, problem));
        }
        if cap < base {
            let problem = format!("the backoff's cap must not be below its base of {base:?}, but is {cap:?}");
            return Err(ConfigError::new(setting, problem));
        }
        Ok(())
    }
}

/// The random spread of delays, so that clients that failed together do not retry together.
///
/// The first four are described in "Exponential Backoff And Jitter" of the AWS Architecture Blog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Jitter {
    /// The computed delay itself, for tests. Clients that failed together retry together.
    None,
    /// A random delay from zero to the computed delay. Causes the least work for the failing side.
    #[default]
    Full,
    /// A random delay from half of the computed delay to all of it.
    Equal,
    /// A random delay from the base to three times the previous delay. The delay grows by chance, not by
    /// count.
    Decorrelated,
    /// The computed delay plus a random part of up to 100 %. The retry never comes earlier than computed.
    Proportional,
}

impl Jitter {
    /// Returns the delay before retry number `retry`, which counts from 0. `previous` is the last delay, zero
    /// before the first retry. The delay never exceeds the backoff's cap.
    pub(crate) fn delay<R: Rng + ?Sized>(
        self,
        backoff: &Backoff,
        retry: u32,
        previous: Duration,
        rng: &mut R,
    ) -> Duration {
        let delay = backoff.delay(retry);
        let chance: f64 = rng.random();
        match self {
            Jitter::None => delay,
            Jitter::Full => delay.mul_f64(chance),
            Jitter::Equal => delay.mul_f64(0.5 + chance / 2.0),
            Jitter::Decorrelated => {
                let low = backoff.base.as_secs_f64();
                let high = previous.max(backoff.base).as_secs_f64() * 3.0;
                backoff.bounded(low + chance * (high - low))
            }
            Jitter::Proportional => backoff.bounded(delay.as_secs_f64() * (1.0 + chance)),
        }
    }
}

/// Creates the random number generator for jitter. With a seed its numbers are repeatable.
pub(crate) fn seeded_rng(seed: Option<u64>) -> SmallRng {
    match seed {
        Some(seed) => SmallRng::seed_from_u64(seed),
        None => SmallRng::from_rng(&mut rand::rng()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Jitter; 5] = [
        Jitter::None,
        Jitter::Full,
        Jitter::Equal,
        Jitter::Decorrelated,
        Jitter::Proportional,
    ];

    fn millis(range: std::ops::Range<u64>) -> impl Strategy<Value = Duration> {
        range.prop_map(Duration::from_millis)
    }

    proptest! {
        #[test]
        fn no_delay_passes_the_cap(
            base in millis(0..100_000),
            more in millis(0..1_000_000),
            factor in 1.0f64..1e6,
            retry in prop_oneof![0u32..64, Just(10_000), Just(u32::MAX)],
            previous in millis(0..10_000_000),
            seed: u64,
        ) {
            let cap = base + more;
            let backoff = Backoff::exponential().base(base).factor(factor).cap(cap);
            let mut rng = SmallRng::seed_from_u64(seed);
            for jitter in ALL {
                prop_assert!(jitter.delay(&backoff, retry, previous, &mut rng) <= cap, "{jitter:?}");
            }
        }

        #[test]
        fn each_jitter_keeps_its_lower_bound(retry in 0u32..40, seed: u64) {
            let backoff = Backoff::exponential();
            let delay = backoff.delay(retry);
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut drawn = |jitter: Jitter| jitter.delay(&backoff, retry, delay, &mut rng);
            prop_assert_eq!(drawn(Jitter::None), delay);
            prop_assert!(drawn(Jitter::Full) <= delay);
            prop_assert!(drawn(Jitter::Equal) >= delay / 2);
            prop_assert!(drawn(Jitter::Decorrelated) >= Duration::from_millis(100));
            prop_assert!(drawn(Jitter::Proportional) >= delay);
        }

        #[test]
        fn the_same_seed_gives_the_same_delays(seed: u64) {
            let draw = || {
                let mut rng = SmallRng::seed_from_u64(seed);
                (0..20).map(|retry| Jitter::Full.delay(&Backoff::exponential(), retry, Duration::ZERO, &mut rng))
                    .collect::<Vec<_>>()
            };
            prop_assert_eq!(draw(), draw());
        }
    }

    #[test]
    fn exponential_delays_double_up_to_the_cap() {
        let backoff = Backoff::exponential();
        let millis: Vec<u128> = (0..9).map(|retry| backoff.delay(retry).as_millis()).collect();
        assert_eq!(millis, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(backoff.delay(10_000), Duration::from_secs(10));
    }

    /// Full jitter is uniform: each tenth of the range gets about a tenth of the draws. With 10,000 draws the
    /// standard deviation of a share is 0.3 %, so 2 % is more than six standard deviations.
    #[test]
    fn jitter_is_spread_evenly() {
        let backoff = Backoff::constant(Duration::from_secs(1));
        let mut rng = SmallRng::seed_from_u64(7);
        for (jitter, low, width) in [(Jitter::Full, 0.0, 1.0), (Jitter::Equal, 0.5, 0.5)] {
            let mut tenths = [0u32; 10];
            for _ in 0..10_000 {
                let delay = jitter.delay(&backoff, 3, Duration::ZERO, &mut rng).as_secs_f64();
                tenths[(((delay - low) / width * 10.0) as usize).min(9)] += 1;
            }
            for count in tenths {
                assert!((800..1_200).contains(&count), "{jitter:?}: {tenths:?}");
            }
        }
    }
}
