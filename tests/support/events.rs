//! The names of events, by which tests count events.

use std::collections::BTreeSet;
use std::fs;
use std::sync::OnceLock;

use redrive::observer::Event;

use crate::emulator::repository;

/// Returns the name of an event's variant, such as `ShardEvent::Halted`.
pub fn name(event: &Event<'_>) -> String {
    let (family, text) = match event {
        Event::Record { event, .. } => ("RecordEvent", format!("{event:?}")),
        Event::Shard { event, .. } => ("ShardEvent", format!("{event:?}")),
        Event::Stream { event, .. } => ("StreamEvent", format!("{event:?}")),
        Event::Fleet { event, .. } => ("FleetEvent", format!("{event:?}")),
        Event::DeadLetter(event) => ("DeadLetterEvent", format!("{event:?}")),
        Event::Protection(event) => ("ProtectionEvent", format!("{event:?}")),
        _ => panic!("a new family: name it here: {event:?}"),
    };
    let variant = text.split([' ', '{']).next().unwrap_or_default();
    format!("{family}::{variant}")
}

/// Returns the name. Panics if no event has it: a count of events with a misspelled name is always 0.
#[track_caller]
pub fn known(name: &str) -> &str {
    static NAMES: OnceLock<BTreeSet<String>> = OnceLock::new();
    assert!(
        NAMES.get_or_init(all).contains(name),
        "no event has the name {name}"
    );
    name
}

/// The names of all variants, from the sources of the families.
fn all() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in ["record", "shard", "stream", "fleet", "dead_letter", "protection"] {
        let path = repository().join(format!("src/observer/event/{file}.rs"));
        let source = fs::read_to_string(path).expect("the file of a family");
        let mut family = "";
        for line in source.lines() {
            if let Some(rest) = line.strip_prefix("pub enum ") {
                family = rest.split('<').next().unwrap_or_default();
            }
            let variant = line.strip_prefix("    ").unwrap_or_default();
            if variant.starts_with(|first: char| first.is_ascii_uppercase()) {
                let end = variant.find([' ', ',', '(']).unwrap_or(variant.len());
                names.insert(format!("{family}::{}", &variant[..end]));
            }
        }
    }
    names
}
