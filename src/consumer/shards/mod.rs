//! The shards of the stream: their parents and children, their checkpoint rows, and where reading starts.

pub(in crate::consumer) mod assigned;
pub(in crate::consumer) mod discovery;
pub(in crate::consumer) mod lease_rows;
pub(in crate::consumer) mod lineage;
pub(in crate::consumer) mod starting_position;
