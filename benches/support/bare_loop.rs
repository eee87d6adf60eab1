//! A loop over `FuturesUnordered` as a user would write it without redrive's pipeline.
//!
//! On the success path the loop keeps the same promises. It makes the same processor calls through the same
//! [`Resilient::settle`] and keeps the same order. It runs up to 64 calls, has up to 4,096 records in flight,
//! and has a watermark that could be checkpointed.
//!
//! The loop has some advantages. It finds a lane with one lookup in a hash map and keeps the lane forever,
//! while redrive removes empty lanes. It keeps a settled record's payload until the watermark passes the
//! record. It has no bounds on span, bytes or the whole process, no shutdown, no shared backoff timer and no
//! observers. While it waits for a batch, it polls no running call.
//!
//! The rest is the same: batches come from a stream, records are moved and never cloned, and keys are hashed
//! by the standard library's hasher with a random seed.

use std::collections::{HashMap, VecDeque};

use futures_util::stream::{FuturesUnordered, StreamExt};
use redrive::pipeline::RecordOrder;
use redrive::{Position, Record, RecordProcessor, Resilient, Settled};

const RUNNING: usize = 64;
const HELD: usize = 4_096;

/// Settles all records and returns the watermark.
pub async fn run<P, S>(resilient: &Resilient<P>, ordering: RecordOrder, mut batches: S) -> Option<Position>
where
    P: RecordProcessor,
    S: futures_util::Stream<Item = Vec<Record>> + Unpin,
{
    let attempt = |place: Place, record: Record| async move {
        let settled = resilient.settle(&record).await;
        (place, record, settled)
    };
    let mut batch = Vec::new().into_iter();
    let mut lanes = Lanes::new(ordering);
    let mut window = Window::default();
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < RUNNING && window.held < HELD {
            let Some(record) = batch.next() else {
                match batches.next().await {
                    Some(next) => batch = next.into_iter(),
                    None => break,
                }
                continue;
            };
            let ordinal = window.admit();
            if let Some((place, record)) = lanes.enter(ordinal, record) {
                running.push(attempt(place, record));
            }
        }
        let Some((place, record, settled)) = running.next().await else {
            break;
        };
        assert!(matches!(settled, Ok(Settled::Processed)));
        if let Some((place, record)) = lanes.leave(place.lane) {
            running.push(attempt(place, record));
        }
        window.settle(place.ordinal, record);
    }
    window.passed.map(|record| record.position())
}

/// Settles one record after the other, without support for concurrency: the minimum cost of shard order.
pub async fn one_by_one<P, S>(resilient: &Resilient<P>, mut batches: S) -> Option<Position>
where
    P: RecordProcessor,
    S: futures_util::Stream<Item = Vec<Record>> + Unpin,
{
    let mut passed = None;
    while let Some(batch) = batches.next().await {
        for record in batch {
            let settled = resilient.settle(&record).await;
            assert!(matches!(settled, Ok(Settled::Processed)));
            passed = Some(record);
        }
    }
    passed.map(|record| record.position())
}

struct Place {
    ordinal: u64,
    lane: usize,
}

/// The lanes of records that must wait for each other.
enum Lanes {
    Shard(Lane),
    Keys {
        numbers: HashMap<String, usize>,
        lanes: Vec<Lane>,
    },
    Unordered,
}

#[derive(Default)]
struct Lane {
    busy: bool,
    queue: VecDeque<(u64, Record)>,
}

impl Lanes {
    fn new(ordering: RecordOrder) -> Self {
        match ordering {
            RecordOrder::Shard => Lanes::Shard(Lane::default()),
            RecordOrder::PartitionKey => Lanes::Keys {
                numbers: HashMap::new(),
                lanes: Vec::new(),
            },
            _ => Lanes::Unordered,
        }
    }

    /// Returns the record if it may start now, and queues it otherwise.
    fn enter(&mut self, ordinal: u64, record: Record) -> Option<(Place, Record)> {
        let (number, lane) = match self {
            Lanes::Shard(lane) => (0, lane),
            Lanes::Keys { numbers, lanes } => {
                let key = record.partition_key().unwrap_or_default();
                let number = match numbers.get(key) {
                    Some(number) => *number,
                    None => {
                        lanes.push(Lane::default());
                        numbers.insert(key.to_owned(), lanes.len() - 1);
                        lanes.len() - 1
                    }
                };
                (number, &mut lanes[number])
            }
            Lanes::Unordered => return Some((Place { ordinal, lane: 0 }, record)),
        };
        if lane.busy {
            lane.queue.push_back((ordinal, record));
            return None;
        }
        lane.busy = true;
        Some((
            Place {
                ordinal,
                lane: number,
            },
            record,
        ))
    }

    /// Returns the next record of the lane, which may start now.
    fn leave(&mut self, number: usize) -> Option<(Place, Record)> {
        let lane = match self {
            Lanes::Shard(lane) => lane,
            Lanes::Keys { lanes, .. } => &mut lanes[number],
            Lanes::Unordered => return None,
        };
        match lane.queue.pop_front() {
            Some((ordinal, record)) => Some((
                Place {
                    ordinal,
                    lane: number,
                },
                record,
            )),
            None => {
                lane.busy = false;
                None
            }
        }
    }
}

/// The records from the watermark to the newest record read. A slot is filled when its record is settled.
#[derive(Default)]
struct Window {
    base: u64,
    ring: VecDeque<Option<Record>>,
    held: usize,
    passed: Option<Record>,
}

impl Window {
    fn admit(&mut self) -> u64 {
        self.ring.push_back(None);
        self.held += 1;
        self.base + self.ring.len() as u64 - 1
    }

    fn settle(&mut self, ordinal: u64, record: Record) {
        self.held -= 1;
        self.ring[(ordinal - self.base) as usize] = Some(record);
        while let Some(Some(_)) = self.ring.front() {
            self.passed = self.ring.pop_front().flatten();
            self.base += 1;
        }
    }
}
