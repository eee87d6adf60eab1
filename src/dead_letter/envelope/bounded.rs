//! Cuts texts to a maximum length inside a JSON string.

/// Returns the longest prefix of the text that takes at most this many bytes inside a JSON string.
pub(super) fn cut(text: &str, bytes: usize) -> String {
    json_prefix(text, bytes).to_owned()
}

/// Borrows the longest prefix of the text that takes at most this many bytes inside a JSON string.
pub(super) fn json_prefix(text: &str, bytes: usize) -> &str {
    let mut used = 0;
    for (at, character) in text.char_indices() {
        used += json_char_bytes(character);
        if used > bytes {
            return &text[..at];
        }
    }
    text
}

pub(super) fn json_bytes(text: &str) -> usize {
    text.chars().map(json_char_bytes).sum()
}

fn json_char_bytes(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        _ => character.len_utf8(),
    }
}
