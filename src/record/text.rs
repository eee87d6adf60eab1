//! A text that a record owns, or shares with other records.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::ops::{Deref, Range};
use std::sync::Arc;

/// A text, owned or shared. It compares, sorts and hashes as a `str`, in each form.
#[derive(Clone)]
pub(crate) enum Text {
    /// The text as it came with the record. A plain record needs no other allocation.
    Own(Box<str>),
    Shared(Arc<str>),
    /// A part of a longer text, such as the one with all keys of an aggregate.
    #[cfg_attr(not(feature = "kpl"), allow(dead_code))]
    Part {
        of: Arc<str>,
        place: Range<u32>,
    },
}

impl Deref for Text {
    type Target = str;

    #[inline]
    fn deref(&self) -> &str {
        match self {
            Text::Own(text) => text,
            Text::Shared(text) => text,
            Text::Part { of, place } => part(of, place),
        }
    }
}

/// Returns a part of a text. It is not inlined, so that the match above stays small.
#[inline(never)]
fn part<'a>(of: &'a str, place: &Range<u32>) -> &'a str {
    // A part is made only of a place that was checked.
    of.get(place.start as usize..place.end as usize)
        .unwrap_or_default()
}

impl From<Box<str>> for Text {
    fn from(text: Box<str>) -> Self {
        Text::Own(text)
    }
}

impl From<Arc<str>> for Text {
    fn from(text: Arc<str>) -> Self {
        Text::Shared(text)
    }
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        match text {
            Text::Own(text) => text.into_string(),
            shared => (*shared).to_owned(),
        }
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Text {}

impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl PartialOrd for Text {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Text {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}
