//! Reads the records of a page straight into the types of this crate.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use aws_smithy_schema::serde::SerdeError;

use super::keys::SharedKeys;
use super::source::Source;
use crate::record::{Record, SequenceNumber, Source as Shard};

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
        let mut records = Vec::new();
        let mut list = source.begin_list()?;
        while source.next_item(&mut list)? {
            records.push(self.record(source, &mut read.keys)?);
        }
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
                "SequenceNumber" => number.replace(read_number(source)?).is_none(),
                "Data" => data.replace(source.read_bytes()?).is_none(),
                "PartitionKey" => key.replace(keys.share(&source.read_text()?)).is_none(),
                "ApproximateArrivalTimestamp" => arrival.replace(source.read_time()?).is_none(),
                _ => {
                    source.skip(DEPTH)?;
                    true
                }
            };
            if !is_first {
                return Err(twice(&name));
            }
        }
        // The SDK would fill them in: a record without its payload would be processed as an empty one.
        let number = number.ok_or_else(|| SerdeError::missing_member("SequenceNumber"))?;
        let data = data.ok_or_else(|| SerdeError::missing_member("Data"))?;
        let mut record = Record::read_from(self.shard.clone(), number).payload(data);
        if let Some(key) = key {
            record = record.shared_key(key);
        }
        if let Some(arrival) = arrival.and_then(|arrival| SystemTime::try_from(arrival).ok()) {
            record = record.arrival(arrival);
        }
        Ok(record.build())
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").finish_non_exhaustive()
    }
}

fn read_number<'a>(source: &mut impl Source<'a>) -> Result<SequenceNumber, SerdeError> {
    source
        .read_text()?
        .parse()
        .map_err(|_| SerdeError::invalid_input("a record has no valid sequence number"))
}

pub(super) fn twice(name: &str) -> SerdeError {
    SerdeError::invalid_input(format!("the answer has {name} twice"))
}
