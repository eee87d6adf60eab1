//! The records of a batch that are not in the window yet.

use std::vec;

#[cfg(feature = "kpl")]
use crate::kpl::Unpacking;
use crate::record::{Record, SequenceNumber};

/// The rest of a batch. The records of a packed aggregate are made one by one.
#[derive(Default)]
pub(super) struct Unread {
    records: vec::IntoIter<Record>,
    #[cfg(feature = "kpl")]
    unpacking: Option<Box<Unpacking>>,
}

/// The next record of a batch.
pub(super) struct NextRecord {
    pub(super) record: Record,
    /// The number of records and the bytes of a packed aggregate, if the record is its first.
    pub(super) opens: Option<(usize, usize)>,
    /// True if the record was made from a packed aggregate.
    pub(super) is_made: bool,
}

impl Unread {
    pub(super) fn new(records: Vec<Record>) -> Self {
        Unread {
            records: records.into_iter(),
            #[cfg(feature = "kpl")]
            unpacking: None,
        }
    }

    #[inline]
    pub(super) fn next(&mut self) -> Option<NextRecord> {
        #[cfg(feature = "kpl")]
        if self.unpacking.is_some() {
            return self.next_made();
        }
        let record = self.records.next()?;
        #[cfg(feature = "kpl")]
        if record.is_packed() {
            return self.unpack(record);
        }
        Some(NextRecord {
            record,
            opens: None,
            is_made: false,
        })
    }

    #[cfg(feature = "kpl")]
    #[cold]
    fn unpack(&mut self, aggregate: Record) -> Option<NextRecord> {
        let bytes = aggregate.payload().len();
        match Unpacking::of(aggregate) {
            Some(unpacking) => {
                let opens = Some((unpacking.left(), bytes));
                self.unpacking = Some(Box::new(unpacking));
                let next = self.next_made()?;
                Some(NextRecord { opens, ..next })
            }
            None => self.next(),
        }
    }

    #[cfg(feature = "kpl")]
    fn next_made(&mut self) -> Option<NextRecord> {
        let unpacking = self.unpacking.as_mut()?;
        let made = unpacking.next();
        if unpacking.left() == 0 || made.is_none() {
            self.unpacking = None;
        }
        match made {
            Some(record) => Some(NextRecord {
                record,
                opens: None,
                is_made: true,
            }),
            None => self.next(),
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        #[cfg(feature = "kpl")]
        if self.unpacking.is_some() {
            return false;
        }
        self.records.as_slice().is_empty()
    }

    /// Returns the number of records left, including those that are not made yet.
    pub(super) fn count(&self) -> usize {
        let left: usize = self.records.as_slice().iter().map(Record::count).sum();
        #[cfg(feature = "kpl")]
        let left = left + self.unpacking.as_ref().map_or(0, |unpacking| unpacking.left());
        left
    }

    /// Returns the records of the batch that were not taken yet. Records of the aggregate being unpacked are
    /// not included.
    #[inline]
    pub(super) fn behind(&self) -> &[Record] {
        self.records.as_slice()
    }

    /// Returns the sequence number of the next record.
    pub(super) fn sequence_number(&self) -> Option<&SequenceNumber> {
        #[cfg(feature = "kpl")]
        if let Some(unpacking) = &self.unpacking {
            return Some(unpacking.aggregate().sequence_number());
        }
        self.records.as_slice().first().map(Record::sequence_number)
    }
}
