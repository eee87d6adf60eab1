//! Tells the checkpoint store how many bytes of a shard were fetched. A store that shares the shards among workers
//! derives the shard's throughput from them.

use std::sync::Arc;

use crate::checkpoint::{self, CheckpointStore, ShardKey};
use crate::record::Record;

pub(in crate::consumer) struct FetchedBytes {
    /// `None` if the store does not share the shards.
    shared: Option<(Arc<dyn CheckpointStore>, ShardKey)>,
}

impl FetchedBytes {
    pub(in crate::consumer) fn new(store: &Arc<dyn CheckpointStore>, key: &ShardKey) -> Self {
        let is_shared = checkpoint::sharing(&**store).is_some();
        FetchedBytes {
            shared: is_shared.then(|| (store.clone(), key.clone())),
        }
    }

    /// Notes a page with these records.
    pub(in crate::consumer) fn note(&self, records: &[Record]) {
        let Some((store, key)) = &self.shared else { return };
        if let Some(sharing) = checkpoint::sharing(&**store) {
            let bytes = records.iter().map(|record| record.payload().len()).sum();
            sharing.note_fetched(key, bytes);
        }
    }
}
