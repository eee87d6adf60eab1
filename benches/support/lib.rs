//! What the benches share.

pub mod answers;
pub mod bare_loop;
pub mod handlers;
pub mod records;
pub mod retries;
pub mod server;
pub mod stream;

/// Whether `cargo bench` runs this. `cargo test` runs benches too, to see that they work: then a
/// little is enough.
pub fn is_bench() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

/// The middle one.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => (values[count / 2 - 1] + values[count / 2]) / 2.0,
    }
}
