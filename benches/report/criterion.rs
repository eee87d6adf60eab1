//! The results of the benches that use criterion.

use std::error::Error;
use std::fs;
use std::path::Path;

use bench::report::{Chart, Results};
use serde::Deserialize;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The part of criterion's `estimates.json` that is needed.
#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

/// Nanoseconds of an iteration.
#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
}

fn median(folder: &Path, bench: &str) -> Result<f64> {
    let file = folder.join(bench).join("new/estimates.json");
    let text = fs::read(&file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    Ok(serde_json::from_slice::<Estimates>(&text)?.median.point_estimate)
}

/// Returns the results of settle.rs.
pub fn settle(folder: &Path) -> Result<Results> {
    let contestants = [
        ("bare", "no retries"),
        ("backon", "backon, exponential"),
        ("redrive", "redrive"),
        ("backon_jitter", "backon, jitter"),
        ("backon_guarded", "backon, timeout, panics caught"),
        ("bare_owned", "no retries, a clone of the record"),
        ("backon_owned", "backon, a clone"),
        ("redrive_fn", "redrive with `processor_fn`, a clone"),
        ("tower", "tower, jitter, two clones"),
    ];
    let mut results = Results {
        columns: ["contestant", "ns per record"].map(str::to_owned).into(),
        ..Results::default()
    };
    let mut bars = Vec::new();
    for (bench, name) in contestants {
        let time = median(&folder.join("settle"), bench)?;
        results.rows.push(vec![name.to_owned(), format!("{time:.1}")]);
        bars.push((name.replace('`', ""), time));
    }
    let title = "ns per record that succeeds".to_owned();
    results.chart = Some(Chart { title, bars });
    Ok(results)
}

/// The number of records of an iteration of pipeline.rs.
const RECORDS: f64 = 1_000_000.0;

/// Returns the results of pipeline.rs.
pub fn pipeline(folder: &Path) -> Result<Results> {
    let columns = [
        "handler",
        "order",
        "redrive",
        "loop over `FuturesUnordered`",
        "redrive, compared with the loop",
    ];
    let mut results = Results {
        columns: columns.map(str::to_owned).into(),
        ..Results::default()
    };
    let mut bars = Vec::new();
    for handler in ["ready at once", "yields once"] {
        for order in ["Shard", "PartitionKey", "Unordered"] {
            let group = folder.join(handler);
            let [ours, loops] =
                ["redrive", "bare_loop"].map(|name| median(&group, &format!("{name}/{order}")));
            let [ours, loops] = [ours? / RECORDS, loops? / RECORDS];
            results.rows.push(vec![
                handler.to_owned(),
                format!("`{order}`"),
                format!("{ours:.0} ns"),
                format!("{loops:.0} ns"),
                format!("{:.2}", ours / loops),
            ]);
            bars.push((format!("redrive, {order}, {handler}"), ours));
            bars.push((format!("loop, {order}, {handler}"), loops));
        }
    }
    let title = "ns per record".to_owned();
    results.chart = Some(Chart { title, bars });
    Ok(results)
}
