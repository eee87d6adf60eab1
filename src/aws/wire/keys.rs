//! Shares the text of partition keys that repeat.

use std::str::Utf8Error;
use std::sync::Arc;

/// The number of sets of places for keys. A power of two.
const SETS: usize = 1 << SET_BITS;
const SET_BITS: u32 = 8;
/// The number of places of a set.
const WAYS: usize = 4;

/// The partition keys that were read last. Each key has one set, and may be in any of its places.
#[derive(Default)]
pub(super) struct SharedKeys {
    /// Empty until the first key: an idle shard needs no memory.
    sets: Vec<[Option<Arc<str>>; WAYS]>,
    /// The place that the last new key took in a full set.
    next: usize,
}

impl SharedKeys {
    /// Returns this text, shared with the earlier records of the same key.
    ///
    /// # Errors
    ///
    /// The key is no UTF-8.
    pub(super) fn share(&mut self, key: &[u8]) -> Result<Arc<str>, Utf8Error> {
        if self.sets.is_empty() {
            self.sets.resize(SETS, [const { None }; WAYS]);
        }
        let set = &mut self.sets[set(key)];
        if let Some(kept) = set.iter().flatten().find(|kept| kept.as_bytes() == key) {
            return Ok(kept.clone());
        }
        let key: Arc<str> = str::from_utf8(key)?.into();
        let place = set.iter().position(Option::is_none).unwrap_or_else(|| {
            self.next = (self.next + 1) % WAYS;
            self.next
        });
        Ok(set[place].insert(key).clone())
    }
}

/// Returns the set of a key, by the first and last eight of its bytes: keys often have a common beginning or end.
fn set(key: &[u8]) -> usize {
    let eight = |part: &[u8]| {
        let mut bytes = [0; 8];
        bytes[..part.len()].copy_from_slice(part);
        u64::from_le_bytes(bytes)
    };
    let length = key.len().min(8);
    let (first, last) = (eight(&key[..length]), eight(&key[key.len() - length..]));
    // An odd constant with many bits, the golden ratio, as in a Fibonacci hash.
    let mixed = (first.rotate_left(32) ^ last ^ key.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> (u64::BITS - SET_BITS)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_keys_share_their_text() {
        let mut keys = SharedKeys::default();
        let texts = ["", "a", "customer-000001", "customer-000002", "\u{1f600}"];
        let mut shared = |key: &str| keys.share(key.as_bytes()).unwrap();
        let (first, second) = (texts.map(&mut shared), texts.map(&mut shared));
        for (index, text) in texts.into_iter().enumerate() {
            assert_eq!(&*second[index], text);
            assert!(Arc::ptr_eq(&first[index], &second[index]), "{text}");
        }
    }

    #[test]
    fn most_of_many_keys_share_their_text() {
        let mut keys = SharedKeys::default();
        let texts: Vec<String> = (0..250).map(|number| format!("customer-{number:06}")).collect();
        let mut shared = |key: &String| keys.share(key.as_bytes()).unwrap();
        let mut read = || texts.iter().map(&mut shared).collect::<Vec<_>>();
        let (first, second) = (read(), read());
        let shared = first
            .iter()
            .zip(&second)
            .filter(|(one, other)| Arc::ptr_eq(one, other));
        // By chance alone about one key would share its set with four others.
        let shared = shared.count();
        assert!(shared > 240, "{shared}");
    }

    #[test]
    fn key_that_is_no_utf8_is_refused() {
        assert!(SharedKeys::default().share(b"customer-\xff").is_err());
    }
}
