//! Tests of the journal on a simulated disk, whose operations fail on demand and which loses unsynced data
//! when the power fails.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard};

use proptest::prelude::*;

use super::*;

/// The outcome of one operation.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Done,
    Fails,
    /// A write accepts only part of its bytes, as `write(2)` may. Any other operation succeeds.
    Short,
}

#[derive(Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    names_on_disk: BTreeMap<PathBuf, usize>,
    locked: BTreeSet<usize>,
    /// The outcomes of the next operations, last one first. Operations beyond them succeed.
    fates: Vec<Fate>,
    /// The number of operations after which all others fail.
    power_ends_after: Option<usize>,
}

/// The content of a file in the page cache and on the disk.
#[derive(Default)]
struct Inode {
    cached: Vec<u8>,
    /// The bytes of `cached` that the next fsync writes.
    dirty: Vec<bool>,
    on_disk: Vec<u8>,
}

#[derive(Clone, Default)]
struct Sim(Arc<Mutex<State>>);

impl Sim {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panicked while it held the lock")
    }

    fn with(files: &[(&str, &str)]) -> Self {
        let sim = Sim::default();
        let mut state = sim.state();
        for (name, text) in files {
            let inode = state.inodes.len();
            state.inodes.push(Inode {
                cached: text.as_bytes().to_vec(),
                dirty: vec![false; text.len()],
                on_disk: text.as_bytes().to_vec(),
            });
            state.names.insert(PathBuf::from(name), inode);
        }
        state.names_on_disk = state.names.clone();
        drop(state);
        sim
    }

    fn fates(&self, fates: &[Fate]) {
        self.state().fates = fates.iter().rev().copied().collect();
    }

    fn fate(&self) -> io::Result<Fate> {
        let mut state = self.state();
        if let Some(left) = &mut state.power_ends_after {
            *left = left.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
        }
        match state.fates.pop().unwrap_or(Fate::Done) {
            Fate::Fails => Err(io::ErrorKind::StorageFull.into()),
            fate => Ok(fate),
        }
    }

    fn process_ends(&self) {
        let mut state = self.state();
        state.locked.clear();
        state.fates.clear();
    }

    /// Drops all data that was not synced, except the first `survive` unsynced bytes of every file.
    fn power_is_lost(&self, survive: usize) {
        self.process_ends();
        let mut state = self.state();
        state.power_ends_after = None;
        state.names = state.names_on_disk.clone();
        for inode in &mut state.inodes {
            let mut left = inode.on_disk.clone();
            if let Some(end) = inode.cached.get(left.len()..) {
                left.extend_from_slice(&end[..survive.min(end.len())]);
            }
            *inode = Inode {
                dirty: vec![false; left.len()],
                cached: left.clone(),
                on_disk: left,
            };
        }
    }

    fn text(&self, name: &str) -> Option<String> {
        let state = self.state();
        let inode = state.names.get(Path::new(name))?;
        Some(String::from_utf8_lossy(&state.inodes[*inode].cached).into_owned())
    }

    /// Returns all lines, in the order in which the files are read.
    fn lines(&self) -> Vec<String> {
        let numbers = successors(self, Path::new("f")).expect("no fault");
        let names = std::iter::once("f".to_owned()).chain(numbers.iter().map(|n| format!("f.{n}")));
        let texts: Vec<String> = names.filter_map(|name| self.text(&name)).collect();
        texts
            .iter()
            .flat_map(|text| text.lines().map(str::to_owned))
            .collect()
    }

    fn make(&self, path: &Path) -> SimFile {
        let mut state = self.state();
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.names.insert(path.to_path_buf(), inode);
        state.locked.insert(inode);
        SimFile {
            disk: self.clone(),
            inode,
            at: 0,
        }
    }
}

impl Disk for Sim {
    type File = SimFile;

    fn open(&self, path: &Path) -> io::Result<Locked<SimFile>> {
        self.fate()?;
        let Some(inode) = self.state().names.get(path).copied() else {
            return Ok(Locked::Ours(self.make(path)));
        };
        if !self.state().locked.insert(inode) {
            return Ok(Locked::Theirs);
        }
        Ok(Locked::Ours(SimFile {
            disk: self.clone(),
            inode,
            at: 0,
        }))
    }

    fn create(&self, path: &Path) -> io::Result<SimFile> {
        self.fate()?;
        if self.state().names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(self.make(path))
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        self.fate()?;
        let mut state = self.state();
        state.names_on_disk = state.names.clone();
        Ok(())
    }

    fn names(&self, _: &Path) -> io::Result<Vec<OsString>> {
        self.fate()?;
        Ok(self
            .state()
            .names
            .keys()
            .map(|path| path.clone().into_os_string())
            .collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.fate()?;
        self.state().names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }
}

struct SimFile {
    disk: Sim,
    inode: usize,
    at: usize,
}

impl Read for SimFile {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.disk.fate()?;
        let state = self.disk.state();
        let rest = state.inodes[self.inode].cached.get(self.at..).unwrap_or_default();
        let count = rest.len().min(to.len());
        to[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}

impl Seek for SimFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let length = self.disk.state().inodes[self.inode].cached.len();
        self.at = match to {
            SeekFrom::Start(at) => at as usize,
            SeekFrom::End(0) => length,
            _ => unreachable!("not used here"),
        };
        Ok(self.at as u64)
    }
}

impl Write for SimFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = match self.disk.fate()? {
            Fate::Short => bytes.len().div_ceil(2),
            _ => bytes.len(),
        };
        let mut state = self.disk.state();
        let inode = &mut state.inodes[self.inode];
        inode.cached.extend_from_slice(&bytes[..taken]);
        inode.dirty.resize(inode.cached.len(), true);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn share(&self) -> io::Result<Self> {
        Ok(SimFile {
            disk: self.disk.clone(),
            inode: self.inode,
            at: 0,
        })
    }

    fn sync(&self) -> io::Result<()> {
        let fate = self.disk.fate();
        let mut state = self.disk.state();
        let inode = &mut state.inodes[self.inode];
        if fate.is_ok() {
            inode.on_disk.resize(inode.cached.len(), 0);
            for (at, _) in inode.dirty.iter().enumerate().filter(|(_, dirty)| **dirty) {
                inode.on_disk[at] = inode.cached[at];
            }
        }
        // Also after a failure, as Linux does: the next fsync then skips these bytes.
        inode.dirty.fill(false);
        fate.map(|_| ())
    }

    fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        self.disk.fate()?;
        let mut state = self.disk.state();
        let inode = &mut state.inodes[self.inode];
        inode.cached.truncate(bytes as usize);
        inode.dirty.truncate(bytes as usize);
        Ok(())
    }
}

fn open(sim: &Sim) -> Result<(Journal<Sim>, Option<PathBuf>), FileError> {
    Journal::open(sim.clone(), Path::new("f"))
}

fn append(journal: &mut Journal<Sim>, lines: &[&str]) -> io::Result<PathBuf> {
    journal.append(lines.iter().map(|line| format!("{line}\n").into_bytes()))
}

use Fate::{Done, Fails, Short};

#[test]
fn what_is_confirmed_outlives_a_power_loss() {
    let sim = Sim::default();
    let (mut journal, _) = open(&sim).expect("no fault");
    append(&mut journal, &["one", "two"]).expect("no fault");
    append(&mut journal, &["three"]).expect("no fault");
    sim.power_is_lost(0);
    assert_eq!(sim.lines(), ["one", "two", "three"]);
}

#[test]
fn a_failed_fsync_is_not_confirmed_and_ends_the_use_of_the_file() {
    let sim = Sim::default();
    let (mut journal, _) = open(&sim).expect("no fault");
    append(&mut journal, &["one"]).expect("no fault");
    sim.fates(&[Done, Fails]);
    append(&mut journal, &["two"]).expect_err("its fsync failed");
    let path = append(&mut journal, &["two"]).expect("in a new file");
    assert_eq!(path, Path::new("f.1"));
    sim.power_is_lost(0);
    assert_eq!(sim.text("f").as_deref(), Some("one\n"));
    assert_eq!(sim.text("f.1").as_deref(), Some("two\n"));
}

#[test]
fn a_half_written_line_stays_behind_in_the_old_file() {
    let sim = Sim::default();
    let (mut journal, _) = open(&sim).expect("no fault");
    append(&mut journal, &["one"]).expect("no fault");
    sim.fates(&[Short, Fails]);
    append(&mut journal, &["two"]).expect_err("the disk is full");
    append(&mut journal, &["two"]).expect("there is room again");
    assert_eq!(sim.text("f").as_deref(), Some("one\ntw"));
    assert_eq!(sim.text("f.1").as_deref(), Some("two\n"));
    drop(journal);
    sim.process_ends();

    let (mut journal, torn) = open(&sim).expect("no fault");
    assert_eq!(torn, None, "only the last file is checked for a torn line");
    append(&mut journal, &["three"]).expect("no fault");
    assert_eq!(sim.text("f.1").as_deref(), Some("two\n\nthree\n"));
}

#[test]
fn a_disk_that_stays_full_is_not_filled_with_files() {
    let sim = Sim::default();
    let (mut journal, _) = open(&sim).expect("no fault");
    append(&mut journal, &["one"]).expect("no fault");
    sim.fates(&[Fails]);
    append(&mut journal, &["two"]).expect_err("the disk is full");
    for _ in 0..50 {
        // List, create, sync the folder, write.
        sim.fates(&[Done, Done, Done, Fails]);
        append(&mut journal, &["two"]).expect_err("the disk is still full");
    }
    let path = append(&mut journal, &["two"]).expect("there is room again");
    assert_eq!(path, Path::new("f.1"));
    assert_eq!(sim.state().names.len(), 2);
}

#[test]
fn a_second_journal_is_refused_also_after_a_fault_of_the_first() {
    let sim = Sim::default();
    let (mut journal, _) = open(&sim).expect("no fault");
    assert!(matches!(open(&sim), Err(FileError::Locked { .. })));
    sim.fates(&[Fails]);
    append(&mut journal, &["one"]).expect_err("the write failed");
    append(&mut journal, &["one"]).expect("in a new file");
    assert!(matches!(open(&sim), Err(FileError::Locked { .. })));
}

#[test]
fn a_torn_line_is_set_aside_and_overwrites_nothing() {
    let sim = Sim::with(&[("f", "one\ntor"), ("f.torn-1", "older")]);
    let (mut journal, torn) = open(&sim).expect("no fault");
    assert_eq!(torn.as_deref(), Some(Path::new("f.torn-2")));
    append(&mut journal, &["two"]).expect("no fault");
    sim.power_is_lost(0);
    assert_eq!(sim.text("f").as_deref(), Some("one\n\ntwo\n"));
    assert_eq!(sim.text("f.torn-1").as_deref(), Some("older"));
    assert_eq!(sim.text("f.torn-2").as_deref(), Some("tor"));
}

#[test]
fn a_torn_line_longer_than_a_reading_step_is_set_aside_whole() {
    let long = "x".repeat(200_000);
    let sim = Sim::with(&[("f", &format!("one\n{long}"))]);
    open(&sim).map(drop).expect("no fault");
    assert_eq!(sim.text("f").as_deref(), Some("one\n"));
    assert_eq!(sim.text("f.torn-1"), Some(long));
}

#[test]
fn setting_a_torn_line_aside_loses_it_at_no_moment() {
    let mut whole_runs = 0;
    for operations in 0..40 {
        let sim = Sim::with(&[("f", "one\ntorn")]);
        sim.state().power_ends_after = Some(operations);
        whole_runs += usize::from(open(&sim).is_ok());
        sim.power_is_lost(0);
        let first = sim.text("f").expect("the file exists");
        let aside = sim.text("f.torn-1").unwrap_or_default();
        assert!(first.starts_with("one\n"), "{first:?}");
        assert!(
            first == "one\ntorn" || aside == "torn",
            "after {operations} operations: {first:?}, {aside:?}"
        );
    }
    assert!(whole_runs > 0, "40 operations are enough for a whole run");
}

#[test]
fn only_numbers_as_the_journal_writes_them_count_as_successors() {
    let names = [
        "f",
        "f.2",
        "f.10",
        "f.1.torn-1",
        "f.02",
        "f.+3",
        "f.x",
        "ff.4",
        "g.5",
    ];
    let sim = Sim::with(&names.map(|name| (name, "")));
    assert_eq!(successors(&sim, Path::new("f")).expect("no fault"), [2, 10]);
}

#[derive(Debug, Clone)]
enum Step {
    Put(usize, Vec<Fate>),
    /// The process ends and a new one starts.
    Restart(Vec<Fate>),
    /// The power fails and a new process starts. This number of unsynced bytes of each file survives.
    PowerLoss(usize, Vec<Fate>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fate = prop_oneof![8 => Just(Done), 1 => Just(Fails), 1 => Just(Short)];
    let fates = prop::collection::vec(fate, 0..12);
    prop::collection::vec(
        prop_oneof![
            6 => (0usize..4, fates.clone()).prop_map(|(lines, fates)| Step::Put(lines, fates)),
            1 => fates.clone().prop_map(Step::Restart),
            1 => (0usize..20, fates).prop_map(|(survive, fates)| Step::PowerLoss(survive, fates)),
        ],
        0..24,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Checks that all confirmed lines are read back in order, whatever operations fail and whenever the
    /// power fails.
    #[test]
    fn nothing_confirmed_is_lost_torn_or_reordered(steps in steps(), survive in 0usize..20) {
        let sim = Sim::default();
        let mut journal = open(&sim).ok().map(|(journal, _)| journal);
        let mut confirmed = Vec::new();
        let mut number = 0;
        for step in steps {
            match step {
                Step::Put(count, fates) => {
                    let Some(journal) = &mut journal else { continue };
                    let lines: Vec<String> = (0..count).map(|i| format!("letter {}.", number + i)).collect();
                    number += count;
                    sim.fates(&fates);
                    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
                    if append(journal, &lines).is_ok() {
                        confirmed.extend(lines.iter().map(|&line| line.to_owned()));
                    }
                }
                Step::Restart(fates) => {
                    drop(journal.take());
                    sim.process_ends();
                    sim.fates(&fates);
                    journal = open(&sim).ok().map(|(journal, _)| journal);
                }
                Step::PowerLoss(survive, fates) => {
                    drop(journal.take());
                    sim.power_is_lost(survive);
                    sim.fates(&fates);
                    journal = open(&sim).ok().map(|(journal, _)| journal);
                }
            }
            if journal.is_none() {
                // After a failed open, the next process opens the journal on a disk that works.
                sim.process_ends();
                journal = open(&sim).ok().map(|(journal, _)| journal);
                prop_assert!(journal.is_some());
            }
        }
        sim.power_is_lost(survive);
        let mut lines = sim.lines();
        lines.retain(|line| confirmed.contains(line));
        prop_assert_eq!(lines, confirmed);
    }
}
