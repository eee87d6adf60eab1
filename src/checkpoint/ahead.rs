//! The records that are settled ahead of a checkpoint, so that a restart repeats almost nothing.
//!
//! The list stores the opposite: the last settled record, and the holes of unsettled records before it.
//! Sequence numbers name them; nothing is counted. A restart therefore skips only records that were settled,
//! whatever was trimmed from the stream meanwhile.

use crate::record::{Position, Record, SequenceNumber};

/// A record's place: sequence and sub-sequence number.
type Place = (SequenceNumber, u64);

/// The records that are settled although an earlier record is not.
///
/// The store writes the list in the same conditional write as its checkpoint. The list carries that
/// checkpoint's position, and a restart uses the list only if the row still has exactly that position.
/// Otherwise the list is dropped: repeating a record is safe, skipping one is not.
///
/// The list takes at most [`MAX_BYTES`](SettledAhead::MAX_BYTES), so that it fits into a row with any
/// checkpoint. A list with too many holes ends at one of them. After a restart, the settled records behind
/// that hole are repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettledAhead {
    base: Position,
    through: Place,
    holes: Vec<(Place, Place)>,
}

impl SettledAhead {
    /// The maximum number of bytes that [`to_bytes`](SettledAhead::to_bytes) returns for a list that the
    /// pipeline has built.
    pub const MAX_BYTES: usize = 4 * 1024;

    /// Returns a builder that collects the unsettled records behind `base`, in their order.
    pub(crate) fn builder(base: Position) -> AheadBuilder {
        AheadBuilder {
            base,
            holes: Vec::new(),
        }
    }

    /// Returns the position of the checkpoint that the list belongs to.
    pub fn base(&self) -> &Position {
        &self.base
    }

    /// Returns true if this record is settled.
    pub fn covers(&self, record: &Record) -> bool {
        let place = (record.sequence_number(), record.sub_sequence_number());
        if place > as_ref(&self.through) {
            return false;
        }
        let hole = self.holes.partition_point(|(_, last)| as_ref(last) < place);
        self.holes
            .get(hole)
            .is_none_or(|(first, _)| place < as_ref(first))
    }

    /// Returns true if the record is behind the end of the list.
    pub(crate) fn ends_before(&self, record: &Record) -> bool {
        (record.sequence_number(), record.sub_sequence_number()) > as_ref(&self.through)
    }

    /// Returns true if the list ends at this record or before it.
    pub(crate) fn ends_at(&self, record: &Record) -> bool {
        as_ref(&self.through) <= (record.sequence_number(), record.sub_sequence_number())
    }

    /// Returns a list with the first `holes` holes that ends at the next hole.
    fn cut(&self, holes: usize) -> SettledAhead {
        let end = self.holes[holes].0.clone();
        let mut holes = self.holes[..holes].to_vec();
        holes.push((end.clone(), end.clone()));
        SettledAhead {
            base: self.base.clone(),
            through: end,
            holes,
        }
    }

    /// Returns the sequence number of the first unsettled record, if the list has a hole.
    pub fn first_hole(&self) -> Option<&SequenceNumber> {
        self.holes.first().map(|(first, _)| &first.0)
    }

    /// Returns the number of holes, which are runs of unsettled records inside the list.
    pub fn holes(&self) -> usize {
        self.holes.len()
    }

    /// Encodes the list in a compact form. Neighbours share most leading digits, so each sequence number is
    /// written as the digits that differ from the previous one.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        let mut last: &str = "";
        match &self.base {
            Position::Record {
                sequence_number,
                sub_sequence_number,
            } => {
                out.push(1);
                put_place(&mut out, &mut last, sequence_number, *sub_sequence_number);
            }
            Position::AtTimestamp { millis } => {
                out.push(2);
                put_number(&mut out, *millis);
            }
            _ => out.push(0),
        }
        put_place(&mut out, &mut last, &self.through.0, self.through.1);
        put_number(&mut out, self.holes.len() as u64);
        for (from, to) in &self.holes {
            put_place(&mut out, &mut last, &from.0, from.1);
            put_place(&mut out, &mut last, &to.0, to.1);
        }
        out
    }

    /// Decodes bytes that [`to_bytes`](SettledAhead::to_bytes) has written.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ParseSettledAheadError> {
        let mut input = Input {
            bytes,
            last: String::new(),
        };
        if input.byte()? != VERSION {
            return Err(ParseSettledAheadError);
        }
        let base = match input.byte()? {
            0 => Position::TrimHorizon,
            1 => {
                let (sequence_number, sub_sequence_number) = input.place()?;
                Position::Record {
                    sequence_number,
                    sub_sequence_number,
                }
            }
            2 => Position::AtTimestamp {
                millis: input.number()?,
            },
            _ => return Err(ParseSettledAheadError),
        };
        let through = input.place()?;
        let count = input.number()?;
        let mut holes: Vec<(Place, Place)> = Vec::new();
        for _ in 0..count {
            let (from, to) = (input.place()?, input.place()?);
            let in_order =
                from <= to && to <= through && holes.last().is_none_or(|(_, before)| *before < from);
            if !in_order {
                return Err(ParseSettledAheadError);
            }
            holes.push((from, to));
        }
        if !input.bytes.is_empty() {
            return Err(ParseSettledAheadError);
        }
        Ok(SettledAhead { base, through, holes })
    }
}

const VERSION: u8 = 1;

/// The bytes are not a [`SettledAhead`], or come from a newer version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a list of records settled ahead of a checkpoint")]
pub struct ParseSettledAheadError;

/// Builds a [`SettledAhead`] while the pipeline walks a window from its oldest record to its newest.
#[derive(Debug)]
pub(crate) struct AheadBuilder {
    base: Position,
    holes: Vec<(Place, Place)>,
}

impl AheadBuilder {
    /// Adds a hole: the records from `first` to `last`, which follow each other, are unsettled.
    pub(crate) fn hole(&mut self, first: &Record, last: &Record) {
        self.holes.push((place(first), place(last)));
    }

    /// Finishes the list: every other record up to and including `read` is settled. Behind `read` the list of
    /// an earlier run still applies, because this run has not read those records yet.
    pub(crate) fn settled_as_before(mut self, read: Option<&Record>, before: &SettledAhead) -> SettledAhead {
        let read = read.map(place);
        for (first, last) in &before.holes {
            let first = match &read {
                Some(read) if last <= read => continue,
                // This run has read the first part of the hole: the rest begins with the next record.
                Some((sequence, sub)) if first <= &(sequence.clone(), *sub) => (sequence.clone(), sub + 1),
                _ => first.clone(),
            };
            self.holes.push((first, last.clone()));
        }
        let through = before.through.clone();
        self.bounded(through)
    }

    /// Finishes the list: every other record up to and including `record` is settled.
    pub(crate) fn settled_through(self, record: &Record) -> SettledAhead {
        self.bounded(place(record))
    }

    fn bounded(self, through: Place) -> SettledAhead {
        let whole = SettledAhead {
            base: self.base,
            through,
            holes: self.holes,
        };
        // For most lists the maximum size per hole shows that they fit, without encoding them.
        let few = whole.holes.len() * MAX_HOLE_BYTES + MAX_HEAD_BYTES <= SettledAhead::MAX_BYTES;
        if few || whole.to_bytes().len() <= SettledAhead::MAX_BYTES {
            return whole;
        }
        let (mut fits, mut too_many) = (0, whole.holes.len());
        while too_many - fits > 1 {
            let holes = fits + (too_many - fits) / 2;
            match whole.cut(holes).to_bytes().len() <= SettledAhead::MAX_BYTES {
                true => fits = holes,
                false => too_many = holes,
            }
        }
        whole.cut(fits)
    }
}

/// The maximum encoded size of a hole: two places of 129 digits, and their lengths.
const MAX_HOLE_BYTES: usize = 2 * (SequenceNumber::MAX_DIGITS + 14);
const MAX_HEAD_BYTES: usize = 2 + MAX_HOLE_BYTES + 10;

fn place(record: &Record) -> Place {
    (record.sequence_number().clone(), record.sub_sequence_number())
}

fn as_ref(place: &Place) -> (&SequenceNumber, u64) {
    (&place.0, place.1)
}

fn put_place<'a>(out: &mut Vec<u8>, last: &mut &'a str, sequence: &'a SequenceNumber, sub: u64) {
    let digits = sequence.as_str();
    let shared = digits
        .bytes()
        .zip(last.bytes())
        .take_while(|(a, b)| a == b)
        .count();
    put_number(out, shared as u64);
    put_number(out, (digits.len() - shared) as u64);
    out.extend_from_slice(&digits.as_bytes()[shared..]);
    put_number(out, sub);
    *last = digits;
}

/// Writes a number in LEB128, as protobuf writes its integers.
fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

struct Input<'a> {
    bytes: &'a [u8],
    last: String,
}

impl Input<'_> {
    fn byte(&mut self) -> Result<u8, ParseSettledAheadError> {
        let (&first, rest) = self.bytes.split_first().ok_or(ParseSettledAheadError)?;
        self.bytes = rest;
        Ok(first)
    }

    fn number(&mut self) -> Result<u64, ParseSettledAheadError> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(ParseSettledAheadError)
    }

    fn place(&mut self) -> Result<Place, ParseSettledAheadError> {
        let shared = usize::try_from(self.number()?).map_err(|_| ParseSettledAheadError)?;
        let rest = usize::try_from(self.number()?).map_err(|_| ParseSettledAheadError)?;
        if shared > self.last.len() || rest > self.bytes.len() {
            return Err(ParseSettledAheadError);
        }
        let (digits, bytes) = self.bytes.split_at(rest);
        self.bytes = bytes;
        self.last.truncate(shared);
        self.last
            .push_str(std::str::from_utf8(digits).map_err(|_| ParseSettledAheadError)?);
        let sequence = self.last.parse().map_err(|_| ParseSettledAheadError)?;
        Ok((sequence, self.number()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(number: u64, sub: u64) -> Record {
        Record::builder("s", "shardId-0".into(), number.into())
            .sub_sequence_number(sub)
            .build()
    }

    /// Builds the list for records that are settled or not, in order, starting behind the base.
    fn ahead(settled: &[bool]) -> Option<SettledAhead> {
        let records: Vec<Record> = (0..settled.len() as u64)
            .map(|i| record(95 + i / 3, i % 3))
            .collect();
        let last = settled.iter().rposition(|&settled| settled)?;
        let mut builder = SettledAhead::builder(Position::TrimHorizon);
        let mut i = 0;
        while i < last {
            let run = settled[i..last].iter().take_while(|&&settled| !settled).count();
            if run > 0 {
                builder.hole(&records[i], &records[i + run - 1]);
            }
            i += run.max(1);
        }
        Some(builder.settled_through(&records[last]))
    }

    proptest! {
        #[test]
        fn covers_exactly_what_was_settled(settled in prop::collection::vec(any::<bool>(), 1..60)) {
            let Some(ahead) = ahead(&settled) else { return Ok(()) };
            let read = SettledAhead::from_bytes(&ahead.to_bytes()).expect("reads back");
            prop_assert_eq!(&read, &ahead);
            for (i, &settled) in settled.iter().enumerate() {
                let i = i as u64;
                prop_assert_eq!(read.covers(&record(95 + i / 3, i % 3)), settled);
            }
            prop_assert!(!read.covers(&record(1_000, 0)));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = SettledAhead::from_bytes(&bytes);
        }

        #[test]
        fn a_changed_byte_never_reads_back_as_the_same(at in 0usize..40, to in any::<u8>()) {
            let ahead = ahead(&[false, true, false, false, true]).expect("some are settled");
            let mut bytes = ahead.to_bytes();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            prop_assert_ne!(SettledAhead::from_bytes(&bytes), Ok(ahead));
        }
    }

    #[test]
    fn what_has_too_many_holes_ends_at_one_of_them() {
        for (count, whole) in [(250, true), (4_000, false)] {
            let mut builder = SettledAhead::builder(record(0, 0).position());
            for i in 1..=count {
                builder.hole(&record(i * 10, 0), &record(i * 10 + 4, 7));
            }
            let ahead = builder.settled_through(&record(count * 10 + 9, 0));
            let bytes = ahead.to_bytes();
            assert!(bytes.len() <= SettledAhead::MAX_BYTES, "{}", bytes.len());
            assert_eq!(SettledAhead::from_bytes(&bytes), Ok(ahead.clone()));
            assert_eq!(ahead.holes() as u64 == count, whole, "{}", ahead.holes());
            assert!(ahead.holes() > 240, "the list has as many holes as fit");
            let end = (ahead.holes() as u64) * 10 + u64::from(whole) * 9;
            for number in 1..count * 10 + 20 {
                let is_hole = (number >= 10 && number % 10 <= 4) || number > count * 10 + 9;
                let covered = ahead.covers(&record(number, 0));
                assert_eq!(covered, !is_hole && number <= end, "{number} of {count}");
            }
        }
    }

    /// Pins version 1 of the format, in which stores keep the list: digits may be written in full.
    #[test]
    fn bytes_of_version_1_are_read() {
        let place = |digits: &str| [&[0, 3][..], digits.as_bytes(), &[0]].concat();
        let bytes = [
            &[1, 1][..],
            &place("100"),
            &place("120"),
            &[1],
            &place("101"),
            &place("103"),
        ]
        .concat();
        let mut expected = SettledAhead::builder(record(100, 0).position());
        expected.hole(&record(101, 0), &record(103, 0));
        let expected = expected.settled_through(&record(120, 0));
        assert_eq!(SettledAhead::from_bytes(&bytes), Ok(expected));
    }

    #[test]
    fn neighbours_take_few_bytes() {
        let long = |tail: u64| -> Record {
            let number = format!("495903382714902566085596925383615710959215759{tail:011}");
            Record::builder("s", "shardId-0".into(), number.parse().expect("digits")).build()
        };
        let mut builder = SettledAhead::builder(long(0).position());
        for i in 1..=300 {
            builder.hole(&long(i * 10), &long(i * 10));
        }
        let ahead = builder.settled_through(&long(20_000));
        assert_eq!(ahead.holes(), 300);
        let bytes = ahead.to_bytes();
        assert!(bytes.len() < 300 * 12, "{} bytes for 300 holes", bytes.len());
    }
}
