//! Replays records through a processor in this process.

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio_util::sync::CancellationToken;

use crate::dead_letter::DeadLetter;
use crate::engine::Resilient;
use crate::processor::Handler;
use crate::record::{Record, Redriven};
use crate::replay::report::Outcome;
use crate::replay::target::{Job, Sent, Target};
use crate::settlement::{Settled, Unsettled};

pub(in crate::replay) struct Through<P: Handler> {
    processor: Resilient<P>,
}

/// The maximum number of partition keys that are processed concurrently.
const LANES: usize = 64;

impl<P: Handler> Through<P> {
    pub(in crate::replay) fn new(processor: Resilient<P>) -> Self {
        Through { processor }
    }

    /// Settles the jobs of one partition key one after the other, up to the first that is not settled.
    async fn lane(&self, jobs: Vec<(usize, &Job)>, stop: &CancellationToken) -> Vec<(usize, Outcome)> {
        let mut outcomes = Vec::new();
        for (place, job) in jobs {
            let record = record(&job.letter, &job.redriven);
            let settled = tokio::select! {
                biased;
                () = stop.cancelled() => Err(Unsettled::Shutdown),
                settled = self.processor.settle(&record) => settled,
            };
            let outcome = match settled {
                Ok(Settled::Processed) => Outcome::Replayed {
                    possibly_repeated: job.possibly_repeated,
                },
                Ok(Settled::Duplicate) => Outcome::Duplicate,
                Ok(Settled::DeadLettered(id)) => Outcome::DeadLettered(id),
                Err(unsettled) => {
                    outcomes.push((place, Outcome::Unsettled(unsettled)));
                    break;
                }
            };
            outcomes.push((place, outcome));
        }
        outcomes
    }
}

/// Builds the original record of a dead letter, with its redrive data.
pub(crate) fn record(letter: &DeadLetter, redriven: &Redriven) -> Record {
    let number = letter.sequence_number.clone();
    let mut record = Record::builder(letter.stream.as_str(), letter.shard.clone(), number)
        .sub_sequence_number(letter.sub_sequence_number)
        .payload(letter.payload.clone())
        .redriven(redriven.clone());
    if let Some(key) = &letter.partition_key {
        record = record.partition_key(key.as_str());
    }
    if let Some(arrival) = letter.arrival {
        record = record.arrival(arrival);
    }
    record.build()
}

impl<P: Handler> Target for Through<P> {
    fn name(&self) -> String {
        format!("processor:{}", self.processor.application())
    }

    async fn send(&self, jobs: &[Job], stop: &CancellationToken) -> Sent {
        let mut lanes: Vec<Vec<(usize, &Job)>> = Vec::new();
        let mut of_key = std::collections::HashMap::new();
        for (place, job) in jobs.iter().enumerate() {
            match &job.letter.partition_key {
                Some(key) => {
                    let lane = *of_key.entry(key).or_insert_with(|| {
                        lanes.push(Vec::new());
                        lanes.len() - 1
                    });
                    lanes[lane].push((place, job));
                }
                None => lanes.push(vec![(place, job)]),
            }
        }
        let mut outcomes: Vec<Outcome> = jobs.iter().map(|_| Outcome::Blocked).collect();
        let mut lanes = lanes.into_iter().map(|jobs| self.lane(jobs, stop));
        let mut running: FuturesUnordered<_> = lanes.by_ref().take(LANES).collect();
        while let Some(done) = running.next().await {
            for (place, outcome) in done {
                outcomes[place] = outcome;
            }
            running.extend(lanes.next());
        }
        Sent {
            outcomes,
            failed: None,
        }
    }
}
