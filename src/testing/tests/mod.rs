//! Adapters with one deliberate fault each: the suites must catch the fault, and pass the adapter without it.

mod checkpoints;
mod fleet_table;
mod idempotency;
mod lease_table;
mod leases;
mod ledgers;
mod sharing;
mod sources;

/// Generates a test for each fault: the check panics with this text.
macro_rules! caught {
    ($suite:ident, $harness:path, $($name:ident: $fault:expr => $check:ident, $text:literal;)*) => {$(
        #[tokio::test]
        #[should_panic(expected = $text)]
        async fn $name() {
            crate::testing::$suite::$check(&$harness($fault)).await;
        }
    )*};
}
use caught;
