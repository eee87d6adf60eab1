//! The observer that every processor has: it writes `tracing` events.

use super::{Event, Interest, Observer};
use crate::failure::Failure;

/// The target of every event that the log writes.
const TARGET: &str = module_path!();

macro_rules! of_record {
    ($level:ident, $record:expr, $($rest:tt)*) => {{
        let record: &$crate::record::Record = $record;
        $level!(
            target: $crate::observer::log::TARGET,
            stream = record.stream(),
            shard = %record.shard(),
            sequence_number = %record.sequence_number(),
            sub_sequence_number = record.sub_sequence_number(),
            key_hash = record.key_hash().map(tracing::field::display),
            $($rest)*
        )
    }};
}

macro_rules! of_shard {
    ($level:ident, $stream:expr, $shard:expr, $($rest:tt)*) => {
        $level!(
            target: $crate::observer::log::TARGET,
            stream = $stream,
            shard = %$shard,
            $($rest)*
        )
    };
}

mod dead_letter;
mod fleet;
mod protection;
mod record;
mod shard;
mod stream;

/// Writes events as `tracing` events: events that an operator must see at WARN and ERROR, failed attempts and
/// the life of shards at INFO, the rest at DEBUG and TRACE.
///
/// Payloads never appear, and partition keys appear as a hash. For a processor's error, only the type, class,
/// scope and code appear by default, because the text may quote the payload.
#[derive(Debug, Clone, Copy, Default)]
pub struct Log {
    error_text: bool,
}

impl Log {
    /// Creates the log, with or without the text of the processor's errors. Default: without.
    pub const fn new(error_text: bool) -> Self {
        Log { error_text }
    }

    fn text(self, failure: &Failure) -> Option<String> {
        self.error_text
            .then(|| failure.chain().collect::<Vec<_>>().join(": "))
    }
}

impl Observer for Log {
    fn interest(&self) -> Interest {
        Interest::FAILURES | Interest::SHARDS
    }

    fn on(&self, event: &Event<'_>) {
        match event {
            Event::Record { record, event } => record::write(*self, record, event),
            Event::Shard { stream, shard, event } => shard::write(stream, shard, event),
            Event::Stream { stream, event } => stream::write(stream, event),
            Event::Fleet { stream, event } => fleet::write(stream, event),
            Event::DeadLetter(event) => dead_letter::write(event),
            Event::Protection(event) => protection::write(event),
        }
    }
}
