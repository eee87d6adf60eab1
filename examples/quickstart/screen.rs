//! The progress bar of a run, updated by an observer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use redrive::observer::{Event, Observer, RecordEvent};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// The time without a settled record after which the run stops. The final table then shows what is missing.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Screen {
    bar: ProgressBar,
    total: u64,
    started: Instant,
    settled: AtomicU64,
    failures: AtomicU64,
    retries: AtomicU64,
    letters: AtomicU64,
    done: Notify,
}

impl Screen {
    pub fn new(total: u64) -> Self {
        let style = "{bar:40} {pos}/{len} settled  {per_sec}  {msg}";
        let bar = ProgressBar::new(total);
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        Screen {
            bar,
            total,
            started: Instant::now(),
            settled: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            letters: AtomicU64::new(0),
            done: Notify::new(),
        }
    }

    /// Completes when every order is settled, or when no order settles for `PATIENCE`.
    pub fn all_settled(self: &std::sync::Arc<Self>) -> impl Future<Output = ()> + Send + 'static {
        let screen = self.clone();
        async move {
            let mut last = 0;
            loop {
                tokio::select! {
                    () = screen.done.notified() => return,
                    () = sleep(PATIENCE) => {}
                }
                let now = screen.settled.load(Ordering::Relaxed);
                if now == last {
                    return;
                }
                last = now;
            }
        }
    }

    pub fn finish(&self) {
        self.bar.finish();
    }

    pub fn print_table(&self) {
        let seconds = self.started.elapsed().as_secs_f64();
        let settled = self.settled.load(Ordering::Relaxed);
        println!();
        println!(
            "  settled          {settled:>8}   in {seconds:.1} s, {:.0}/s",
            settled as f64 / seconds
        );
        println!("  failed attempts  {:>8}", self.failures.load(Ordering::Relaxed));
        println!("  retries          {:>8}", self.retries.load(Ordering::Relaxed));
        println!("  dead letters     {:>8}", self.letters.load(Ordering::Relaxed));
        println!();
    }
}

impl Observer for Screen {
    fn on(&self, event: &Event<'_>) {
        let Event::Record { event, .. } = event else {
            return;
        };
        match event {
            RecordEvent::AttemptFailed { .. } => {
                self.failures.fetch_add(1, Ordering::Relaxed);
            }
            RecordEvent::RetryScheduled { .. } => {
                self.retries.fetch_add(1, Ordering::Relaxed);
            }
            RecordEvent::DeadLettered { .. } => {
                self.letters.fetch_add(1, Ordering::Relaxed);
            }
            RecordEvent::Settled { .. } => {
                let settled = self.settled.fetch_add(1, Ordering::Relaxed) + 1;
                self.bar.set_position(settled);
                if settled.is_multiple_of(100) {
                    let retries = self.retries.load(Ordering::Relaxed);
                    let letters = self.letters.load(Ordering::Relaxed);
                    self.bar
                        .set_message(format!("{retries} retries, {letters} dead letters"));
                }
                if settled == self.total {
                    self.done.notify_one();
                }
            }
            _ => {}
        }
    }
}
