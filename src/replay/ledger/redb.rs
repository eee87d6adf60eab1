//! A ledger in an embedded database file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use redb::{Database, ReadableDatabase, TableDefinition, TableError};
use tokio::task::spawn_blocking;

use super::locks::Locks;
use super::{Entry, Key, Ledger, LedgerError};
use crate::embedded_db::{self, OpenError};
use crate::failure::BoxError;

/// Remembers entries in a [redb](https://www.redb.org) file, fsynced at every write. Only one process at a
/// time can open the file. A clone shares it.
///
/// The file grows by about 500 bytes per dead letter, and no entry is ever removed. Delete the file once no
/// copy of its dead letters is left anywhere.
#[derive(Clone)]
pub struct Redb {
    database: Arc<Database>,
    path: Arc<PathBuf>,
    locks: Arc<Locks>,
}

/// Maps a [`Key`] as text to an [`Entry`] as JSON, which an operator can read.
const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("replayed");

impl Redb {
    /// Opens the file, or creates it. Its folder must exist.
    ///
    /// # Errors
    ///
    /// Returns [`LedgerError::InUse`] if another process has the file open. Returns
    /// [`LedgerError::Unusable`] if the file cannot be opened or is not a redb database.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LedgerError> {
        let path = path.as_ref().to_path_buf();
        Ok(Redb {
            database: Arc::new(embedded_db::open(&path)?),
            path: Arc::new(path),
            locks: Arc::default(),
        })
    }
}

impl From<OpenError> for LedgerError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::InUse { path } => LedgerError::InUse { path },
            error => LedgerError::Unusable(error.into()),
        }
    }
}

impl fmt::Debug for Redb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redb")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Ledger for Redb {
    async fn look_up(&self, keys: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError> {
        let (database, keys) = (self.database.clone(), keys.to_vec());
        let read = spawn_blocking(move || read(&database, &keys)).await;
        read.map_err(LedgerError::unavailable)?
            .map_err(LedgerError::Unavailable)
    }

    async fn write(&self, entries: &[(Key, Entry)]) -> Result<(), LedgerError> {
        let (database, entries) = (self.database.clone(), entries.to_vec());
        let written = spawn_blocking(move || write(&database, &entries)).await;
        written
            .map_err(LedgerError::unavailable)?
            .map_err(LedgerError::Unavailable)
    }

    async fn lock(&self, source: &str, owner: &str) -> Result<(), LedgerError> {
        // No other process has the file open, so that a lock in this process suffices.
        self.locks.lock(source, owner)
    }

    async fn unlock(&self, source: &str, owner: &str) -> Result<(), LedgerError> {
        self.locks.unlock(source, owner);
        Ok(())
    }
}

fn read(database: &Database, keys: &[Key]) -> Result<Vec<Option<Entry>>, BoxError> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(TABLE) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(vec![None; keys.len()]),
        Err(error) => return Err(error.into()),
    };
    keys.iter()
        .map(|key| {
            let entry = table.get(key.as_str())?;
            let entry = entry.map(|json| serde_json::from_slice(json.value()));
            Ok(entry.transpose()?)
        })
        .collect()
}

fn write(database: &Database, entries: &[(Key, Entry)]) -> Result<(), BoxError> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(TABLE)?;
        for (key, entry) in entries {
            let json = serde_json::to_vec(entry)?;
            table.insert(key.as_str(), json.as_slice())?;
        }
    }
    Ok(transaction.commit()?)
}
