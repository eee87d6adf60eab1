//! A file into which all workers of a fleet write each record that they process, in one order.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use redrive::Record;

use super::emulator::{target, unique};

/// The number of partition keys. The records of a key have the numbers `n`, `n + KEYS`, `n + 2 * KEYS` and so
/// on.
pub const KEYS: u64 = 40;

/// Returns a record's key and data. The data is the number, with zeros before it.
pub fn record(number: u64) -> (String, String) {
    (format!("key-{}", number % KEYS), format!("{number:0>100}"))
}

/// The file. Dropping this value removes the file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
}

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub worker: String,
    /// The action of the worker, for example `record` for a record that it has processed.
    pub what: String,
    pub shard: String,
    /// The record's number.
    pub number: Option<u64>,
}

impl Entry {
    /// Returns true if this worker has processed a record of this shard.
    pub fn is_record_of(&self, worker: &str, shard: &str) -> bool {
        self.what == "record" && self.worker == worker && self.shard == shard
    }
}

impl Journal {
    pub fn new() -> Self {
        let folder = target().join("journals");
        fs::create_dir_all(&folder).expect("a folder below the target directory");
        let path = folder.join(unique("journal"));
        Journal { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes down a record that a worker has processed, as `tests/kcl/processor.py` does.
    pub fn note(&self, worker: &str, record: &Record) {
        let data = std::str::from_utf8(record.payload()).expect("a number");
        let (shard, number) = (record.shard(), record.sequence_number());
        let line = format!("{worker}\trecord\t{shard}\t{number}\t0\t{data}\n");
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        // One write per line, because several processes append to the file.
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        written.expect("a journal");
    }

    pub fn entries(&self) -> Vec<Entry> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        // The last line may be incomplete.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let entry = |line: &str| {
            let columns: Vec<&str> = line.split('\t').collect();
            Entry {
                worker: columns[0].to_owned(),
                what: columns[1].to_owned(),
                shard: columns[2].to_owned(),
                number: columns.get(5).map(|data| data.parse().expect("a number")),
            }
        };
        whole.lines().map(entry).collect()
    }

    /// Returns the number of different records that were processed.
    pub fn processed(&self) -> u64 {
        Order::of(&self.entries()).processed()
    }

    /// Returns the number of repetitions.
    pub fn repeated(&self) -> u64 {
        Order::of(&self.entries()).repeated
    }
}

impl Default for Journal {
    fn default() -> Self {
        Journal::new()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The order in which the records of each key were processed.
struct Order {
    /// The next record of each key that was not processed.
    next: HashMap<u64, u64>,
    repeated: u64,
}

impl Order {
    /// Asserts that no record is processed before all earlier records of its key.
    fn of(entries: &[Entry]) -> Self {
        let mut order = Order {
            next: (0..KEYS).map(|key| (key, key)).collect(),
            repeated: 0,
        };
        for entry in entries.iter().filter(|entry| entry.what == "record") {
            let number = entry.number.expect("a record has a number");
            let next = order.next.entry(number % KEYS).or_default();
            assert!(
                number <= *next,
                "{entry:?} overtakes record {next} of its key, which may be lost"
            );
            match number == *next {
                true => *next += KEYS,
                false => order.repeated += 1,
            }
        }
        order
    }

    fn processed(&self) -> u64 {
        self.next.iter().map(|(key, next)| (next - key) / KEYS).sum()
    }
}
