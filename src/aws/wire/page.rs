//! Reads the records of a page straight into the types of this crate.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use aws_smithy_schema::serde::SerdeError;

use super::keys::SharedKeys;
use super::source::{Source, no_utf8};
use crate::record::{Record, SequenceNumber, Source as Shard};
use crate::wall_clock::UnixTime;

/// The depth of a record in an answer: inside a list inside a map.
const DEPTH: u32 = 2;

/// The records of one shard that were read last.
pub(super) struct Page {
    shard: Arc<Shard>,
    read: Mutex<Read>,
}

#[derive(Default)]
struct Read {
    records: Vec<Record>,
    /// The number of records in the last answer. The next one is often as long.
    length: usize,
    keys: SharedKeys,
}

impl Page {
    pub(super) fn new(shard: Arc<Shard>) -> Self {
        Page {
            shard,
            read: Mutex::default(),
        }
    }

    /// Takes the records of the last answer.
    pub(super) fn take(&self) -> Vec<Record> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut read.records)
    }

    /// Reads a list of records. The records of an earlier answer are dropped.
    pub(super) fn read<'a>(&self, source: &mut impl Source<'a>) -> Result<(), SerdeError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.records = Vec::new();
        let mut records = Vec::with_capacity(read.length);
        let mut list = source.begin_list()?;
        while source.next_item(&mut list)? {
            records.push(self.record(source, &mut read.keys)?);
        }
        read.length = records.len();
        read.records = records;
        Ok(())
    }

    fn record<'a>(&self, source: &mut impl Source<'a>, keys: &mut SharedKeys) -> Result<Record, SerdeError> {
        let (mut number, mut data, mut key, mut arrival) = (None, None, None, None);
        let mut map = source.begin_map()?;
        while let Some(name) = source.next_key(&mut map)? {
            if source.is_null() {
                source.read_null()?;
                continue;
            }
            let is_first = match &*name {
                b"SequenceNumber" => number.replace(read_number(source)?).is_none(),
                b"Data" => data.replace(source.read_bytes()?).is_none(),
                b"PartitionKey" => key.replace(read_key(source, keys)?).is_none(),
                b"ApproximateArrivalTimestamp" => arrival.replace(source.read_time()?).is_none(),
                _ => {
                    source.skip(DEPTH)?;
                    true
                }
            };
            if !is_first {
                return Err(twice(&String::from_utf8_lossy(&name)));
            }
        }
        // The SDK would fill them in: a record without its payload would be processed as an empty one.
        let number = number.ok_or_else(|| SerdeError::missing_member("SequenceNumber"))?;
        let data = data.ok_or_else(|| SerdeError::missing_member("Data"))?;
        let arrival = arrival.map(|at| UnixTime::new(at.secs(), at.subsec_nanos().into()));
        Ok(Record::of_page(self.shard.clone(), number, key, arrival, data))
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").finish_non_exhaustive()
    }
}

fn read_number<'a>(source: &mut impl Source<'a>) -> Result<SequenceNumber, SerdeError> {
    SequenceNumber::of_digits(&source.read_string()?)
        .ok_or_else(|| SerdeError::invalid_input("a record has no valid sequence number"))
}

fn read_key<'a>(source: &mut impl Source<'a>, keys: &mut SharedKeys) -> Result<Arc<str>, SerdeError> {
    keys.share(&source.read_string()?).map_err(|_| no_utf8())
}

pub(super) fn twice(name: &str) -> SerdeError {
    SerdeError::invalid_input(format!("the answer has {name} twice"))
}
