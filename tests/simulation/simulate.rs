//! Runs the consumer in a simulated world, one seed after the other. With `--fleet`, several consumers share the
//! shards of one stream.
//!
//! Kinesis, the stores, the processor and the clock are simulated. Faults of every kind are injected. An
//! oracle checks the promises after every step.
//!
//! ```sh
//! cargo run --release -p redrive-simulation -- --seeds 100000
//! cargo run --release -p redrive-simulation -- --seed 4711 --print
//! cargo run --release -p redrive-simulation -- --fleet --seeds 10000
//! ```

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use redrive::Sabotage;

use simulator::{Counts, Fault, Options, Outcome, Violation, minimise, simulate, simulate_fleet};

/// Run the consumer under simulated faults
#[derive(Parser)]
struct Arguments {
    /// Number of seeds to run
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// First seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Run only this seed
    #[arg(long)]
    seed: Option<u64>,
    /// Kinds of faults to exclude, separated by commas
    #[arg(long, value_delimiter = ',')]
    without: Vec<Fault>,
    /// Maximum number of records that the seed plans
    #[arg(long)]
    records: Option<usize>,
    /// Run several consumers that share the shards of one stream
    #[arg(long)]
    fleet: bool,
    /// Print the plan, the steps and the events
    #[arg(long)]
    print: bool,
    /// Commit a deliberate fault in the code, by name, such as LoseOrder
    #[arg(long, value_parser = sabotage)]
    sabotage: Option<Sabotage>,
}

fn sabotage(name: &str) -> Result<Sabotage, String> {
    let found = Sabotage::ALL
        .into_iter()
        .find(|fault| format!("{fault:?}") == name);
    found.ok_or_else(|| format!("unknown fault; the faults are {:?}", Sabotage::ALL))
}

impl Arguments {
    /// Returns the function that runs a seed.
    fn simulate(&self) -> fn(&Options, bool) -> Outcome {
        match self.fleet {
            true => simulate_fleet,
            false => simulate,
        }
    }

    fn options(&self, seed: u64) -> Options {
        Options {
            seed,
            without: self.without.iter().copied().collect(),
            records: self.records.unwrap_or(usize::MAX),
        }
    }
}

/// The totals over all seeds.
#[derive(Default)]
struct Totals {
    counts: Counts,
    seeds: u64,
    workers: u64,
    records: u64,
    calls: u64,
    letters: u64,
    held: u64,
    hours: f64,
    broken: Vec<(u64, Violation)>,
}

impl Totals {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.counts.add_all(&outcome.counts);
        self.seeds += 1;
        self.workers += outcome.workers;
        self.records += outcome.records;
        self.calls += outcome.calls;
        self.letters += outcome.letters;
        self.held += u64::from(outcome.held);
        self.hours += outcome.took.as_secs_f64() / 3_600.0;
        self.broken
            .extend(outcome.violation.map(|violation| (seed, violation)));
    }

    fn print(&self) {
        println!(
            "{} seeds, {} workers, {} records, {} processor calls, {} dead letters, {:.0} hours of simulated time",
            self.seeds, self.workers, self.records, self.calls, self.letters, self.hours
        );
        for (fault, count) in self.counts.iter() {
            println!("{count:>12} {fault}");
        }
        let total: u64 = self.counts.iter().map(|(_, count)| count).sum();
        println!("{total:>12} faults in total");
        if self.held > 0 {
            println!(
                "{} seeds ended with held records: 20 or more poisoned keys, and no record that can succeed",
                self.held
            );
        }
        println!("{} seeds broke a promise", self.broken.len());
    }
}

/// The number of failing seeds after which the search stops.
const ENOUGH: usize = 10;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (first, end) = match arguments.seed {
        Some(seed) => (seed, seed + 1),
        None => (arguments.from, arguments.from + arguments.seeds),
    };
    let progress = ProgressBar::new(end - first);
    let template = "{elapsed_precise} {wide_bar} {pos}/{len} seeds, {per_sec}, {eta} left {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        progress.set_style(style);
    }
    let (next, totals) = (AtomicU64::new(first), Mutex::new(Totals::default()));
    let totals_now = || totals.lock().unwrap_or_else(PoisonError::into_inner);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                Sabotage::commit(arguments.sabotage);
                while totals_now().broken.len() < ENOUGH {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let outcome = arguments.simulate()(&arguments.options(seed), arguments.print);
                    if let Some(violation) = &outcome.violation {
                        progress.suspend(|| println!("seed {seed}: {violation}"));
                    }
                    totals_now().add(seed, outcome);
                    progress.inc(1);
                }
            });
        }
    });
    progress.abandon();
    let mut totals = totals_now();
    totals.print();
    totals.broken.sort_by_key(|(seed, _)| *seed);
    Sabotage::commit(arguments.sabotage);
    let Some((seed, violation)) = totals.broken.first() else {
        return ExitCode::SUCCESS;
    };
    print_least(&arguments, *seed, violation);
    ExitCode::FAILURE
}

/// Minimises a failing seed. Prints its violation, and the command that replays the minimised seed.
fn print_least(arguments: &Arguments, seed: u64, violation: &Violation) {
    let (least, outcome) = minimise(&arguments.options(seed), violation, arguments.simulate());
    let without: BTreeSet<&str> = least.without.iter().map(|fault| fault.name()).collect();
    let without: Vec<&str> = without.into_iter().collect();
    println!("\nminimised seed {}, which breaks the same promise:", least.seed);
    if let Some(violation) = outcome.violation {
        println!("{violation}");
    }
    let mut command = format!(
        "cargo run --release -p redrive-simulation -- --seed {} --print",
        least.seed
    );
    command += &format!(" --records {}", least.records);
    if !without.is_empty() {
        command += &format!(" --without {}", without.join(","));
    }
    if arguments.fleet {
        command += " --fleet";
    }
    if let Some(sabotage) = arguments.sabotage {
        command += &format!(" --sabotage {sabotage:?}");
    }
    println!("{command}");
}
