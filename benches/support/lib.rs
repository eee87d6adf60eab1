//! The code that the benches share.

pub mod answers;
pub mod bare_loop;
pub mod handlers;
pub mod meter;
pub mod records;
pub mod report;
pub mod retries;
pub mod server;
pub mod stream;

/// Returns true if `cargo bench` runs the program. `cargo test` also runs the benches, to check that they
/// work; a short run is enough then.
pub fn is_bench() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

/// Sorts the values and returns the median.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => (values[count / 2 - 1] + values[count / 2]) / 2.0,
    }
}
