//! The schedule of the dead letters of one put: a state machine without calls or clocks.
//!
//! A service that takes many dead letters in a request promises no order inside the request, and one entry
//! may fail while the next succeeds. So a request contains at most one entry of a partition key. The next
//! entry of that key is sent when the first is confirmed.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::dead_letter::{Receipt, SinkError};
use crate::failure::BoxError;

/// The service's limits for one request.
#[derive(Debug, Clone, Copy)]
pub(in crate::dead_letter) struct Limits {
    pub(in crate::dead_letter) entries: usize,
    pub(in crate::dead_letter) bytes: u64,
}

/// A dead letter in the form that the service gets.
#[derive(Debug)]
pub(in crate::dead_letter) struct Entry {
    /// The ordering key: entries of one key are sent one after the other.
    pub(in crate::dead_letter) key: String,
    /// The data to send; empty once a try has taken it, see [`Schedule::take_data`].
    pub(in crate::dead_letter) data: Bytes,
    /// The size in bytes, as the service counts it.
    pub(in crate::dead_letter) bytes: u64,
    /// The deduplication id; empty if the service has none.
    pub(in crate::dead_letter) deduplication_id: String,
    /// The place that the entry is written to; empty if the service chooses the place.
    pub(in crate::dead_letter) place: String,
}

impl Entry {
    pub(in crate::dead_letter) fn refused(&self, limit: u64, source: impl Into<BoxError>) -> SinkError {
        SinkError::Refused {
            size: self.bytes,
            limit,
            source: source.into(),
        }
    }
}

/// The error of a call or an entry, which several dead letters may share.
pub(in crate::dead_letter) type SharedError = Arc<dyn std::error::Error + Send + Sync>;

/// The entries that one put has yet to write.
#[derive(Debug)]
pub(in crate::dead_letter) struct Schedule {
    entries: Vec<Entry>,
    limits: Limits,
    results: Vec<Option<Result<Receipt, SinkError>>>,
    // The maximum size of an entry that is sent, in bytes.
    limit: u64,
    lanes: Vec<Lane>,
    // The lanes whose first entry may be sent, in order.
    ready: VecDeque<usize>,
    // The lanes whose first entry failed and waits for another try.
    resting: Vec<usize>,
}

/// The dead letters of one partition key, in order.
#[derive(Debug, Default)]
struct Lane {
    letters: VecDeque<usize>,
    // The number of failed tries of the lane's first entry.
    tries: u32,
    // The maximum number of entries in a request with the lane's first entry, after a larger request was
    // refused.
    most: Option<usize>,
}

/// The lanes whose first entries are sent together. The caller must return the request to the schedule with
/// its outcome.
#[derive(Debug)]
#[must_use]
pub(in crate::dead_letter) struct Request {
    lanes: Vec<usize>,
}

impl Request {
    pub(in crate::dead_letter) fn len(&self) -> usize {
        self.lanes.len()
    }
}

impl Schedule {
    pub(in crate::dead_letter) fn new(entries: Vec<Entry>, limits: Limits) -> Self {
        let mut lanes: Vec<Lane> = Vec::new();
        let mut by_key: HashMap<&str, usize> = HashMap::new();
        for (letter, entry) in entries.iter().enumerate() {
            let lane = *by_key.entry(&entry.key).or_insert_with(|| {
                lanes.push(Lane::default());
                lanes.len() - 1
            });
            lanes[lane].letters.push_back(letter);
        }
        Schedule {
            results: entries.iter().map(|_| None).collect(),
            limit: u64::MAX,
            ready: (0..lanes.len()).collect(),
            resting: Vec::new(),
            entries,
            limits,
            lanes,
        }
    }

    /// Returns the size of the largest entry, in bytes.
    pub(in crate::dead_letter) fn largest(&self) -> u64 {
        self.entries.iter().map(|entry| entry.bytes).max().unwrap_or(0)
    }

    /// Refuses every entry that is larger than `limit`, when its turn comes: earlier entries of its key are
    /// sent, later ones are not. Must be called before the first request.
    pub(in crate::dead_letter) fn refuse_larger_than(&mut self, limit: u64) {
        self.limit = limit;
        for lane in std::mem::take(&mut self.ready) {
            self.line_up(lane);
        }
    }

    /// Returns the next entries that may be sent, at most one of each key.
    pub(in crate::dead_letter) fn next_request(&mut self) -> Option<Request> {
        let mut most = self.limits.entries;
        let mut bytes = 0;
        let mut lanes = Vec::new();
        while let Some((&lane, entry)) = self.ready.front().zip(self.first_ready()) {
            most = most.min(self.lanes[lane].most.unwrap_or(most));
            bytes += entry.bytes;
            // The first entry is always sent, even if it is too large: the service decides.
            if !lanes.is_empty() && (lanes.len() >= most || bytes > self.limits.bytes) {
                break;
            }
            lanes.push(lane);
            self.ready.pop_front();
        }
        (!lanes.is_empty()).then_some(Request { lanes })
    }

    fn first_ready(&self) -> Option<&Entry> {
        self.first_of(*self.ready.front()?)
    }

    fn first_of(&self, lane: usize) -> Option<&Entry> {
        Some(&self.entries[*self.lanes[lane].letters.front()?])
    }

    /// Returns the entries of a request, in order.
    pub(in crate::dead_letter) fn entries(&self, request: &Request) -> impl Iterator<Item = &Entry> {
        request.lanes.iter().filter_map(|&lane| self.first_of(lane))
    }

    /// Takes the data of a request's entries, each with the index of its dead letter in the put. The data is
    /// moved and not copied, because the client needs to own it and few entries need another try. The caller
    /// makes the data of those entries again.
    pub(in crate::dead_letter) fn take_data(&mut self, request: &Request) -> Vec<(usize, Bytes)> {
        let letters = request
            .lanes
            .iter()
            .filter_map(|&lane| self.lanes[lane].letters.front());
        let entries = &mut self.entries;
        letters
            .map(|&letter| (letter, std::mem::take(&mut entries[letter].data)))
            .collect()
    }

    /// Handles the answer to a request: for each entry its place, or the reason why it is not written. An
    /// entry that failed `tries` times is given up.
    pub(in crate::dead_letter) fn answered(
        &mut self,
        request: Request,
        answers: Vec<Result<Receipt, SharedError>>,
        tries: u32,
    ) {
        for (lane, answer) in request.lanes.into_iter().zip(answers) {
            match answer {
                Ok(receipt) => self.confirm(lane, receipt),
                Err(error) => {
                    self.lanes[lane].tries += 1;
                    if self.lanes[lane].tries < tries {
                        self.resting.push(lane);
                    } else {
                        self.end(lane, |_| SinkError::unavailable(error.clone()));
                    }
                }
            }
        }
    }

    /// Handles a request that failed as a whole: its entries may be sent again, before all others.
    pub(in crate::dead_letter) fn put_back(&mut self, request: Request) {
        for lane in request.lanes.into_iter().rev() {
            self.ready.push_front(lane);
        }
    }

    /// Handles a request that was refused for the content of one of its entries: its entries are sent again
    /// in halves.
    pub(in crate::dead_letter) fn split(&mut self, request: Request) {
        let most = request.len().div_ceil(2);
        for &lane in &request.lanes {
            self.lanes[lane].most = Some(most);
        }
        self.put_back(request);
    }

    /// Ends the entries of a request that no try of this put can write.
    pub(in crate::dead_letter) fn refuse(&mut self, request: Request, why: impl Fn(&Entry) -> SinkError) {
        for lane in request.lanes {
            self.end(lane, &why);
        }
    }

    /// Ends every entry that is not confirmed yet.
    pub(in crate::dead_letter) fn give_up(&mut self, error: &SharedError) {
        for lane in 0..self.lanes.len() {
            self.end(lane, |_| SinkError::unavailable(error.clone()));
        }
        self.ready.clear();
        self.resting.clear();
    }

    /// Makes the failed entries ready to be sent again. Returns the largest number of failed tries among
    /// them, or `None` if no entry waits.
    pub(in crate::dead_letter) fn wake(&mut self) -> Option<u32> {
        let tries = self.resting.iter().map(|&lane| self.lanes[lane].tries).max();
        self.ready.extend(self.resting.drain(..));
        tries
    }

    /// Returns the results of all dead letters, in their order.
    pub(in crate::dead_letter) fn into_results(self) -> Vec<Result<Receipt, SinkError>> {
        self.results
            .into_iter()
            // Every entry has ended by now. If one had not, it would count as not written.
            .map(|result| result.unwrap_or(Err(SinkError::Behind)))
            .collect()
    }

    fn confirm(&mut self, lane: usize, receipt: Receipt) {
        if let Some(letter) = self.lanes[lane].letters.pop_front() {
            self.results[letter] = Some(Ok(receipt));
        }
        self.lanes[lane].tries = 0;
        self.lanes[lane].most = None;
        self.line_up(lane);
    }

    /// Makes the first entry of a lane ready to be sent, or refuses it if it is too large.
    fn line_up(&mut self, lane: usize) {
        match self.first_of(lane) {
            Some(entry) if entry.bytes > self.limit => {
                let limit = self.limit;
                self.end(lane, |entry| entry.refused(limit, TooLarge));
            }
            Some(_) => self.ready.push_back(lane),
            None => {}
        }
    }

    /// Ends the first entry of the lane with this error, and the others with [`SinkError::Behind`].
    fn end(&mut self, lane: usize, why: impl Fn(&Entry) -> SinkError) {
        for (at, letter) in std::mem::take(&mut self.lanes[lane].letters)
            .into_iter()
            .enumerate()
        {
            let error = match at {
                0 => why(&self.entries[letter]),
                _ => SinkError::Behind,
            };
            self.results[letter] = Some(Err(error));
        }
    }
}

/// The cause of a refusal without a call to the service.
#[derive(Debug, thiserror::Error)]
#[error("the dead letter is larger than the target's limit")]
struct TooLarge;

#[cfg(test)]
mod tests;
