//! A dead-letter stream.
