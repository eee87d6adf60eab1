//! Which letters may leave next: a pure state machine, without calls or clocks.
//!
//! A service that takes many letters in a request promises no order inside it, and one entry may fail where the next
//! succeeds. So a request carries at most one entry of a partition key, and the next of that key leaves when the
//! first is confirmed.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::dead_letter::{Receipt, SinkError};
use crate::failure::BoxError;

/// What a request of the service may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) entries: usize,
    pub(super) bytes: u64,
}

/// A letter as the service gets it.
#[derive(Debug)]
pub(super) struct Entry {
    /// Letters of one key leave one after the other.
    pub(super) key: String,
    /// Empty while a try has it, see [`Schedule::take_data`].
    pub(super) data: Bytes,
    /// As the service counts it.
    pub(super) bytes: u64,
    /// Empty where the service has none.
    pub(super) deduplication_id: String,
    /// Where it goes, where the service does not say that itself.
    pub(super) place: String,
}

impl Entry {
    pub(super) fn refused(&self, limit: u64, source: impl Into<BoxError>) -> SinkError {
        SinkError::Refused {
            size: self.bytes,
            limit,
            source: source.into(),
        }
    }
}

/// The error of a call or an entry, which several letters may share.
pub(super) type SharedError = Arc<dyn std::error::Error + Send + Sync>;

/// What one put has still to write.
#[derive(Debug)]
pub(super) struct Schedule {
    entries: Vec<Entry>,
    limits: Limits,
    results: Vec<Option<Result<Receipt, SinkError>>>,
    // The most bytes of a letter that may leave.
    limit: u64,
    lanes: Vec<Lane>,
    // The lanes whose first letter may leave, in order.
    ready: VecDeque<usize>,
    // Those whose first letter failed and waits for another try.
    resting: Vec<usize>,
}

/// The letters of one partition key, in order.
#[derive(Debug, Default)]
struct Lane {
    letters: VecDeque<usize>,
    // Of its first letter.
    tries: u32,
    // How many entries a request may have that its first letter is in, if a larger one was refused.
    most: Option<usize>,
}

/// Letters that leave together. To be given back to the schedule with what became of them.
#[derive(Debug)]
#[must_use]
pub(super) struct Request {
    lanes: Vec<usize>,
}

impl Request {
    pub(super) fn len(&self) -> usize {
        self.lanes.len()
    }
}

impl Schedule {
    pub(super) fn new(entries: Vec<Entry>, limits: Limits) -> Self {
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

    /// The size of the largest letter, in bytes.
    pub(super) fn largest(&self) -> u64 {
        self.entries.iter().map(|entry| entry.bytes).max().unwrap_or(0)
    }

    /// Refuses each letter that is larger than `limit` when it is its turn: those of its key ahead of it
    /// leave, those behind it do not. Before the first request.
    pub(super) fn refuse_larger_than(&mut self, limit: u64) {
        self.limit = limit;
        for lane in std::mem::take(&mut self.ready) {
            self.line_up(lane);
        }
    }

    /// The next letters that may leave, at most one of a key.
    pub(super) fn next_request(&mut self) -> Option<Request> {
        let mut most = self.limits.entries;
        let mut bytes = 0;
        let mut lanes = Vec::new();
        while let Some((&lane, entry)) = self.ready.front().zip(self.first_ready()) {
            most = most.min(self.lanes[lane].most.unwrap_or(most));
            bytes += entry.bytes;
            // The first always leaves: the service judges it.
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

    /// The entries of a request, in order.
    pub(super) fn entries(&self, request: &Request) -> impl Iterator<Item = &Entry> {
        request.lanes.iter().filter_map(|&lane| self.first_of(lane))
    }

    /// What a request's entries hold, each with the place of its letter in the put. It is given away and not copied: a
    /// client wants it for itself, and few letters need another try. Those who do get it made again.
    pub(super) fn take_data(&mut self, request: &Request) -> Vec<(usize, Bytes)> {
        let letters = request
            .lanes
            .iter()
            .filter_map(|&lane| self.lanes[lane].letters.front());
        let entries = &mut self.entries;
        letters
            .map(|&letter| (letter, std::mem::take(&mut entries[letter].data)))
            .collect()
    }

    /// The request was answered: for each entry where it is, or why it is not written. A letter that
    /// failed `tries` times is given up.
    pub(super) fn answered(
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

    /// The request failed as a whole: its letters may leave again, before all others.
    pub(super) fn put_back(&mut self, request: Request) {
        for lane in request.lanes.into_iter().rev() {
            self.ready.push_front(lane);
        }
    }

    /// The request was refused for what one of its entries holds: its halves may leave.
    pub(super) fn split(&mut self, request: Request) {
        let most = request.len().div_ceil(2);
        for &lane in &request.lanes {
            self.lanes[lane].most = Some(most);
        }
        self.put_back(request);
    }

    /// Ends the letters of a request that can be written neither now nor by another try of this put.
    pub(super) fn refuse(&mut self, request: Request, why: impl Fn(&Entry) -> SinkError) {
        for lane in request.lanes {
            self.end(lane, &why);
        }
    }

    /// Ends every letter that is not confirmed yet.
    pub(super) fn give_up(&mut self, error: &SharedError) {
        for lane in 0..self.lanes.len() {
            self.end(lane, |_| SinkError::unavailable(error.clone()));
        }
        self.ready.clear();
        self.resting.clear();
    }

    /// Lets the letters that failed leave again. Says how often the most tried of them failed; `None`
    /// if none rests.
    pub(super) fn wake(&mut self) -> Option<u32> {
        let tries = self.resting.iter().map(|&lane| self.lanes[lane].tries).max();
        self.ready.extend(self.resting.drain(..));
        tries
    }

    /// What became of the letters, in their order.
    pub(super) fn into_results(self) -> Vec<Result<Receipt, SinkError>> {
        self.results
            .into_iter()
            // Every letter has ended by now; one that had not would not be written.
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

    /// Lets the first letter of a lane leave, unless it is too large.
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

    /// The first letter of the lane ends with this error, the others stay behind it.
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

/// The service was not asked.
#[derive(Debug, thiserror::Error)]
#[error("the letter is larger than the largest that the target takes")]
struct TooLarge;

#[cfg(test)]
mod tests;
