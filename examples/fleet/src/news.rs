//! The latest events of all workers. Each worker has an observer that adds its events.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use redrive::ShardId;
use redrive::observer::{Event, FleetEvent, Interest, Observer, ShardEvent};
use tokio::time::Instant;

const LINES: usize = 12;

#[derive(Debug)]
pub(crate) struct News {
    start: Instant,
    lines: Mutex<VecDeque<String>>,
    handed_over: AtomicU64,
}

impl News {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(News {
            start: Instant::now(),
            lines: Mutex::default(),
            handed_over: AtomicU64::new(0),
        })
    }

    pub(crate) fn add(&self, text: &str) {
        let line = format!("{:6.1} s  {text}", self.start.elapsed().as_secs_f64());
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push_back(line);
        if lines.len() > LINES {
            lines.pop_front();
        }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().cloned().collect()
    }

    /// Returns the number of shards that a worker has handed over to another one on request.
    pub(crate) fn handed_over(&self) -> u64 {
        self.handed_over.load(Ordering::Relaxed)
    }
}

/// The observer of one worker.
pub(crate) struct Reporter {
    pub(crate) worker: String,
    pub(crate) news: Arc<News>,
}

impl Observer for Reporter {
    fn interest(&self) -> Interest {
        Interest::SHARDS
    }

    fn on(&self, event: &Event<'_>) {
        let worker = &self.worker;
        let text = match event {
            Event::Shard { shard, event, .. } => {
                let shard = number(shard);
                match event {
                    ShardEvent::HandedOver { .. } => {
                        self.news.handed_over.fetch_add(1, Ordering::Relaxed);
                        format!("{worker} has handed over shard {shard}")
                    }
                    ShardEvent::LeaseLost { .. } => format!("{worker} has lost shard {shard}"),
                    _ => return,
                }
            }
            Event::Fleet { event, .. } => match event {
                FleetEvent::LeaderGained { .. } => format!("{worker} is the leader"),
                FleetEvent::LeaderLost { .. } => format!("{worker} is no longer the leader"),
                FleetEvent::WorkerJoined { worker, workers, .. } => {
                    format!("{} has joined: {workers} workers", short(worker))
                }
                FleetEvent::WorkerLeft { worker, workers, .. } => {
                    format!("{} has left: {workers} workers", short(worker))
                }
                FleetEvent::LeaseAssigned { shard, to, .. } => {
                    format!("shard {} is assigned to {}", number(shard), short(to))
                }
                FleetEvent::HandOverRequested { shard, from, to, .. } => {
                    let (from, to) = (short(from), short(to));
                    format!("{from} is asked to hand over shard {} to {to}", number(shard))
                }
                FleetEvent::LeaseExpired { shard, owner, .. } => {
                    format!(
                        "the lease of {} on shard {} has expired",
                        short(owner),
                        number(shard)
                    )
                }
                _ => return,
            },
            _ => return,
        };
        self.news.add(&text);
    }
}

/// Returns a worker's name without the digits that the store appends.
pub(crate) fn short(worker: &str) -> &str {
    worker.rsplit_once('-').map_or(worker, |(name, _)| name)
}

/// Returns the number in a shard's name.
pub(crate) fn number(shard: &ShardId) -> u64 {
    let digits = shard.as_str().trim_start_matches("shardId-");
    digits.parse().unwrap_or_default()
}
