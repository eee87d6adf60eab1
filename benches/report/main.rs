//! Writes `docs/performance.md` and its charts from the results of the benches:
//! `cargo run --profile bench -p redrive-benches --bin report`, on an idle machine.
//!
//! With names of benches as arguments, only these run, and the page keeps the last results of the others.
//! page.md is the text of the page. A line such as `{{consumer}}` stands for the results of that bench.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use bench::report::{self, Chart, Results};

mod chart;
mod criterion;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The benches of the page, in the order in which they run.
const BENCHES: [&str; 10] = [
    "settle",
    "pipeline",
    "workers",
    "failures",
    "consumer",
    "kcl",
    "lambda",
    "cold_start",
    "deaggregation",
    "shards",
];

/// The crates and packages whose versions the page states.
const CRATES: [&str; 4] = ["redrive", "aws-sdk-kinesis", "tokio", "ferrokinesis"];

fn main() -> Result<()> {
    let wanted: Vec<String> = env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|name| !BENCHES.contains(&name.as_str())) {
        return Err(format!("no bench is named {unknown}; the page has {}", BENCHES.join(", ")).into());
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .ok_or("no repository")?;
    let program = env::current_exe()?;
    let target = program.ancestors().nth(2).ok_or("no target directory")?;
    let results = target.join("performance");
    for name in BENCHES {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            run(name, &results)?;
        }
    }
    let page = Page {
        results,
        criterion: target.join("criterion"),
        docs: repository.join("docs"),
    };
    page.write(include_str!("page.md"))
}

/// Runs a bench, which writes its results to the folder.
fn run(name: &str, results: &Path) -> Result<()> {
    println!("\n=== {name}");
    Results::remove(results, name)?;
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["bench", "-p", "redrive-benches", "--bench", name])
        .env(report::FOLDER, results)
        .status()?;
    // A bench that misses a target fails, too. Its results are as good as any.
    if !status.success() && Results::read(results, name).is_err() {
        return Err(format!("the bench {name} fails: see above").into());
    }
    Ok(())
}

struct Page {
    results: PathBuf,
    /// The results of the benches that use criterion.
    criterion: PathBuf,
    docs: PathBuf,
}

impl Page {
    fn write(&self, text: &str) -> Result<()> {
        fs::create_dir_all(self.docs.join("performance"))?;
        let mut page = String::new();
        for line in text.lines() {
            match line.strip_prefix("{{").and_then(|line| line.strip_suffix("}}")) {
                Some("machine") => page.push_str(&machine()?),
                Some(name) => page.push_str(&self.results(name)?),
                None => page.push_str(line),
            }
            page.push('\n');
        }
        fs::write(self.docs.join("performance.md"), page)?;
        Ok(())
    }

    /// Returns the results of a bench in Markdown, and writes its chart.
    fn results(&self, name: &str) -> Result<String> {
        let results = match name {
            "settle" => criterion::settle(&self.criterion),
            "pipeline" => criterion::pipeline(&self.criterion),
            _ => Results::read(&self.results, name),
        };
        let results = results.map_err(|error| format!("{error}; run the bench: report {name}"))?;
        let mut text = table(&results);
        for note in &results.notes {
            write!(text, "\n\n{note}")?;
        }
        if let Some(Chart { title, bars }) = &results.chart {
            let file = format!("performance/{name}.svg");
            fs::write(self.docs.join(&file), chart::bars(title, bars)?)?;
            write!(text, "\n\n![{title}]({file})")?;
        }
        Ok(text)
    }
}

fn table(results: &Results) -> String {
    let line = |cells: &[String]| format!("| {} |", cells.join(" | "));
    let mut lines = vec![line(&results.columns), "|---".repeat(results.columns.len()) + "|"];
    lines.extend(results.rows.iter().map(|row| line(row)));
    lines.join("\n")
}

/// Returns an amount of memory as `/proc/meminfo` states it, in GiB.
fn gibibytes(amount: &str) -> String {
    let kibibytes = amount
        .strip_suffix(" kB")
        .and_then(|number| number.parse::<f64>().ok());
    kibibytes.map_or_else(
        || amount.to_owned(),
        |number| format!("{:.1} GiB", number / 1_048_576.0),
    )
}

/// Returns a table of the machine and of the versions.
fn machine() -> Result<String> {
    let read = |file: &str, key: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.map_or_else(
            || "unknown".to_owned(),
            |line| line.trim_start_matches([':', ' ', '\t']).trim().to_owned(),
        )
    };
    let day = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let mut rows = vec![
        (
            "date".to_owned(),
            day.split('T').next().unwrap_or_default().to_owned(),
        ),
        ("processor".to_owned(), read("/proc/cpuinfo", "model name")),
        (
            "cores".to_owned(),
            std::thread::available_parallelism()?.to_string(),
        ),
        ("memory".to_owned(), gibibytes(&read("/proc/meminfo", "MemTotal"))),
        ("Linux".to_owned(), read("/proc/sys/kernel/osrelease", "")),
        ("Rust".to_owned(), output(Command::new("rustc").arg("--version"))?),
    ];
    for name in CRATES {
        let id = output(Command::new("cargo").args(["pkgid", name]))?;
        let version = id.rsplit(['@', '#']).next().unwrap_or_default();
        rows.push((format!("`{name}`"), version.to_owned()));
    }
    if let Ok(java) = output(Command::new("java").arg("-version")) {
        rows.push(("Java".to_owned(), java));
    }
    if let Ok(python) = output(Command::new("python3").arg("--version")) {
        rows.push(("Python".to_owned(), python));
    }
    let rows = rows
        .into_iter()
        .map(|(name, value)| format!("| {name} | {value} |"));
    let head = ["| | |".to_owned(), "|---|---|".to_owned()];
    Ok(head.into_iter().chain(rows).collect::<Vec<_>>().join("\n"))
}

/// Returns the first line that a program prints.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    // Java prints its version to standard error.
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text)?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}
