//! The names of events, by which tests count events.

use redrive::observer::Event;

/// Returns the name of an event's variant, such as `ShardEvent::Halted`.
pub fn name(event: &Event<'_>) -> String {
    let (family, text) = match event {
        Event::Record { event, .. } => ("RecordEvent", format!("{event:?}")),
        Event::Shard { event, .. } => ("ShardEvent", format!("{event:?}")),
        Event::Stream { event, .. } => ("StreamEvent", format!("{event:?}")),
        Event::DeadLetter(event) => ("DeadLetterEvent", format!("{event:?}")),
        Event::Protection(event) => ("ProtectionEvent", format!("{event:?}")),
        _ => panic!("a new family: name it here: {event:?}"),
    };
    let variant = text.split([' ', '{']).next().unwrap_or_default();
    format!("{family}::{variant}")
}
