//! The use of the CPU, measured as KCL's workers measure it: in a container by the limit of the container, and
//! otherwise for the whole machine.

use std::collections::VecDeque;
use std::fs::read_to_string;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::time::Instant;

/// The shortest period that is measured.
const SHORTEST: Duration = Duration::from_secs(1);
/// The number of values that a worker reports (KCL's).
const MOST_VALUES: usize = 10;

/// Measures the use of the CPU between two calls.
#[derive(Debug)]
pub(super) struct CpuMeter {
    root: PathBuf,
    last: Option<(Sample, Instant)>,
    /// The latest values, oldest first.
    values: VecDeque<f64>,
}

/// Counters that rise with time.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Sample {
    /// The CPU time that the container has used, and the number of CPUs that it may use.
    Container { used: Duration, cpus: f64 },
    /// The ticks during which the CPUs of the machine were busy, and all ticks.
    Machine { busy: u64, all: u64 },
}

impl CpuMeter {
    pub(super) fn start() -> Self {
        CpuMeter::start_in(PathBuf::from("/"))
    }

    fn start_in(root: PathBuf) -> Self {
        let last = Sample::take(&root).map(|sample| (sample, Instant::now()));
        CpuMeter {
            root,
            last,
            values: VecDeque::new(),
        }
    }

    /// Returns the time that must pass before the next measurement.
    pub(super) fn remaining(&self) -> Duration {
        let Some((_, at)) = self.last else {
            return Duration::ZERO;
        };
        SHORTEST.saturating_sub(at.elapsed())
    }

    /// Measures the use since the last measurement, if a measurement is due. Returns the latest values in percent,
    /// oldest first.
    pub(super) fn values(&mut self) -> Vec<f64> {
        if self.remaining().is_zero()
            && let Some(value) = self.measure()
        {
            self.values.push_back(value);
            if self.values.len() > MOST_VALUES {
                self.values.pop_front();
            }
        }
        self.values.iter().copied().collect()
    }

    /// Returns the mean use since the last call, in percent. Returns `None` if it cannot be measured, as on other
    /// systems than Linux.
    fn measure(&mut self) -> Option<f64> {
        let now = Instant::now();
        let sample = Sample::take(&self.root)?;
        let (before, at) = self.last.replace((sample, now))?;
        sample.percent_since(before, now.saturating_duration_since(at))
    }
}

impl Sample {
    fn take(root: &Path) -> Option<Self> {
        let read = |path: &str| read_to_string(root.join(path)).ok();
        // The control group of a machine has no such file.
        match read("sys/fs/cgroup/cpu.max") {
            Some(limit) => Sample::container(&limit, &read("sys/fs/cgroup/cpu.stat")?),
            None => Sample::machine(&read("proc/stat")?),
        }
    }

    /// Reads the files `cpu.max` and `cpu.stat` of a control group (version 2).
    fn container(limit: &str, stat: &str) -> Option<Self> {
        let mut limit = limit.split_whitespace();
        let cpus = match limit.next()? {
            "max" => available_parallelism().ok()?.get() as f64,
            most => most.parse::<f64>().ok()? / limit.next()?.parse::<f64>().ok()?,
        };
        let used = stat.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
        let used = Duration::from_micros(used.trim().parse().ok()?);
        Some(Sample::Container { used, cpus })
    }

    /// Reads the first line of the file `stat` of the system: user, nice, system, idle and waiting time of all
    /// CPUs.
    fn machine(stat: &str) -> Option<Self> {
        let ticks = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
        let ticks: Vec<u64> = ticks.take(5).map_while(|ticks| ticks.parse().ok()).collect();
        let [user, nice, system, idle, waiting] = ticks[..] else {
            return None;
        };
        let used = user + nice + system;
        Some(Sample::Machine {
            // As KCL counts: a CPU that waits for a disk is busy.
            busy: used + waiting,
            all: used + waiting + idle,
        })
    }

    fn percent_since(self, before: Self, elapsed: Duration) -> Option<f64> {
        let share = match (before, self) {
            (Sample::Container { used: before, .. }, Sample::Container { used, cpus }) => {
                used.saturating_sub(before).as_secs_f64() / (elapsed.as_secs_f64() * cpus)
            }
            (
                Sample::Machine {
                    busy: busy_before,
                    all: all_before,
                },
                Sample::Machine { busy, all },
            ) => busy.saturating_sub(busy_before) as f64 / all.saturating_sub(all_before) as f64,
            _ => return None,
        };
        share.is_finite().then(|| (share * 100.0).clamp(0.0, 100.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn machine_is_measured_by_its_busy_ticks() {
        let before =
            Sample::machine("cpu  100 0 50 800 50 7 7 7 0 0\ncpu0 1 2 3 4 5\n").expect("well formed");
        let after =
            Sample::machine("cpu  120 10 60 840 70 9 9 9 0 0\ncpu0 1 2 3 4 5\n").expect("well formed");
        // 60 of 100 ticks.
        assert_eq!(after.percent_since(before, SECOND), Some(60.0));
        assert_eq!(after.percent_since(after, SECOND), None);
    }

    #[test]
    fn container_is_measured_by_its_limit() {
        let sample = |micros| {
            Sample::container("150000 100000\n", &format!("usage_usec {micros}\nuser_usec 1\n"))
                .expect("well formed")
        };
        // 0.75 of 1.5 CPUs.
        assert_eq!(
            sample(2_750_000).percent_since(sample(2_000_000), SECOND),
            Some(50.0)
        );
        // The measurement is coarse: no more than everything.
        assert_eq!(
            sample(9_000_000).percent_since(sample(2_000_000), SECOND),
            Some(100.0)
        );
    }

    #[test]
    fn container_without_a_limit_may_use_all_cpus() {
        let sample = Sample::container("max 100000\n", "usage_usec 5\n").expect("well formed");
        let all = available_parallelism().expect("known").get() as f64;
        let used = Duration::from_micros(5);
        assert_eq!(sample, Sample::Container { used, cpus: all });
    }

    #[test]
    fn unknown_files_are_not_measured() {
        assert_eq!(Sample::machine("cpu  1 2 3\n"), None);
        assert_eq!(Sample::machine(""), None);
        assert_eq!(Sample::container("none", "usage_usec 5"), None);
        assert_eq!(Sample::container("max 100000", "user_usec 5"), None);
        let empty = tempfile::tempdir().expect("a folder");
        assert_eq!(CpuMeter::start_in(empty.path().to_owned()).measure(), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_is_measured() {
        let mut meter = CpuMeter::start();
        std::thread::sleep(meter.remaining());
        let used = meter.measure().expect("a machine with Linux");
        assert!((0.0..=100.0).contains(&used), "{used}");
    }
}
