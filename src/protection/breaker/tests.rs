use super::*;

#[test]
fn the_documented_defaults() {
    let defaults = Settings {
        share: 0.5,
        attempts: 20,
        window: Duration::from_secs(10),
        in_a_row: 5,
        probes: 5,
        pause: Backoff::exponential()
            .base(Duration::from_secs(1))
            .factor(2.0)
            .cap(Duration::from_secs(60)),
        hold_at_most: Duration::from_secs(15 * 60),
    };
    let builder = CircuitBreaker::builder();
    assert_eq!((builder.settings, builder.seed), (defaults, None));
}

#[test]
fn invalid_settings_are_refused_by_name() {
    let builder = CircuitBreaker::builder;
    let pause = |pause| builder().pause(pause);
    for (builder, setting) in [
        (builder().failure_share(0.0), "failure_share"),
        (builder().failure_share(1.1), "failure_share"),
        (builder().failure_share(f64::NAN), "failure_share"),
        (builder().min_attempts(0), "min_attempts"),
        (builder().keys_in_a_row(0), "keys_in_a_row"),
        (builder().window(Duration::ZERO), "window"),
        (builder().probes(0), "probes"),
        (builder().probes(4), "probes"),
        (pause(Backoff::constant(Duration::ZERO)), "pause"),
        (pause(Backoff::exponential().factor(0.5)), "pause"),
    ] {
        assert_eq!(builder.build().expect_err("refused").setting(), setting);
    }
    assert!(builder().build().is_ok());
}

/// A pause beyond the range of the clock must not panic.
#[tokio::test(start_paused = true)]
async fn longest_pause_and_window_are_valid() {
    let breaker = CircuitBreaker::builder()
        .keys_in_a_row(1)
        .pause(Backoff::constant(Duration::MAX))
        .window(Duration::MAX)
        .build()
        .expect("valid");
    let record = Record::builder("orders", "shardId-0".into(), 1.into()).build();
    breaker.failed(&record, false);
    assert_eq!(breaker.state(), CircuitBreakerState::Open);
}
