//! Shares the text of partition keys that repeat.

use std::sync::Arc;

/// The number of places for keys. A power of two.
const PLACES: usize = 1 << PLACE_BITS;
const PLACE_BITS: u32 = 9;

/// The partition keys that were read last. Each place keeps the last two of its keys.
#[derive(Default)]
pub(super) struct SharedKeys {
    /// Empty until the first key: an idle shard needs no memory.
    places: Vec<[Option<Arc<str>>; 2]>,
}

impl SharedKeys {
    /// Returns this text, shared with the earlier records of the same key.
    pub(super) fn share(&mut self, key: &str) -> Arc<str> {
        if self.places.is_empty() {
            self.places.resize(PLACES, [None, None]);
        }
        let place = &mut self.places[place(key.as_bytes())];
        if place[0].as_deref() != Some(key) {
            place.swap(0, 1);
        }
        match &mut place[0] {
            Some(kept) if **kept == *key => kept.clone(),
            other => other.insert(key.into()).clone(),
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
    (mixed >> (u64::BITS - PLACE_BITS)) as usize
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
    fn most_of_many_keys_share_their_text() {
        let mut keys = SharedKeys::default();
        let texts: Vec<String> = (0..250).map(|number| format!("customer-{number:06}")).collect();
        let mut read = || texts.iter().map(|key| keys.share(key)).collect::<Vec<_>>();
        let (first, second) = (read(), read());
        let shared = first
            .iter()
            .zip(&second)
            .filter(|(one, other)| Arc::ptr_eq(one, other));
        // By chance alone about 20 keys would share a place with two others.
        let shared = shared.count();
        assert!(shared > 225, "{shared}");
    }
}
