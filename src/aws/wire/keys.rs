//! Shares the text of partition keys that repeat.

use std::sync::Arc;

/// The number of keys that are kept. A power of two.
const KEPT: usize = 1 << KEPT_BITS;
const KEPT_BITS: u32 = 10;

/// The partition keys that were read last. Each has one place: another key may take it.
#[derive(Default)]
pub(super) struct SharedKeys {
    /// Empty until the first key: an idle shard needs no memory.
    kept: Vec<Option<Arc<str>>>,
}

impl SharedKeys {
    /// Returns this text, shared with the earlier records of the same key.
    pub(super) fn share(&mut self, key: &str) -> Arc<str> {
        if self.kept.is_empty() {
            self.kept.resize(KEPT, None);
        }
        let kept = &mut self.kept[place(key.as_bytes())];
        match kept {
            Some(kept) if **kept == *key => kept.clone(),
            _ => kept.insert(key.into()).clone(),
        }
    }
}

/// Returns the place of a key, by the first and last eight of its bytes: keys often have a common beginning or end.
fn place(key: &[u8]) -> usize {
    let eight = |part: &[u8]| {
        let mut bytes = [0; 8];
        bytes[..part.len()].copy_from_slice(part);
        u64::from_le_bytes(bytes)
    };
    let length = key.len().min(8);
    let (first, last) = (eight(&key[..length]), eight(&key[key.len() - length..]));
    // An odd constant with many bits, the golden ratio, as in a Fibonacci hash.
    let mixed = (first.rotate_left(32) ^ last ^ key.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> (u64::BITS - KEPT_BITS)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_keys_share_their_text() {
        let mut keys = SharedKeys::default();
        let texts = ["", "a", "customer-000001", "customer-000002", "\u{1f600}"];
        let first = texts.map(|key| keys.share(key));
        let second = texts.map(|key| keys.share(key));
        for (index, text) in texts.into_iter().enumerate() {
            assert_eq!(&*second[index], text);
            assert!(Arc::ptr_eq(&first[index], &second[index]), "{text}");
        }
    }

    #[test]
    fn numbered_keys_have_places_of_their_own() {
        let mut places: Vec<usize> = (0..500)
            .map(|number| place(format!("customer-{number:06}").as_bytes()))
            .collect();
        places.sort_unstable();
        places.dedup();
        // By chance alone 500 keys would have about 395 places.
        assert!(places.len() > 380, "{}", places.len());
    }
}
