//! Checkpoints in an embedded database file.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use redb::{Database, ReadableDatabase, TableDefinition, TableError};
use serde::{Deserialize, Serialize};

use super::{Checkpoint, CheckpointError, CheckpointStore, SettledAhead, ShardKey};
use crate::embedded_db::{self, OpenError, blocking};
use crate::failure::BoxError;
use crate::record::{Position, ShardId};

/// Keeps checkpoints in a [redb](https://www.redb.org) file, fsynced at every write. Only one process at a
/// time can open the file. Clones share the open file.
#[derive(Clone)]
pub struct Redb {
    database: Arc<Database>,
    path: Arc<PathBuf>,
}

/// Maps application, stream and shard to a [`Row`] as JSON, which an operator can read.
const TABLE: TableDefinition<'_, (&str, &str, &str), &[u8]> = TableDefinition::new("checkpoints");

#[derive(Serialize, Deserialize)]
struct Row {
    position: Position,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ahead: Option<String>,
    /// Milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    read_until: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    starts: Option<String>,
    /// Milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stream_created: Option<u64>,
}

impl Redb {
    /// Opens the file, or creates it. Its folder must exist.
    ///
    /// # Errors
    ///
    /// Returns [`CheckpointError::InUse`] if another process has the file open. Returns
    /// [`CheckpointError::Unusable`] if the file cannot be opened or is not a redb database.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref().to_path_buf();
        Ok(Redb {
            database: Arc::new(embedded_db::open(&path)?),
            path: Arc::new(path),
        })
    }
}

impl From<OpenError> for CheckpointError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::InUse { path } => CheckpointError::InUse { path },
            error => CheckpointError::Unusable(error.into()),
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
impl CheckpointStore for Redb {
    async fn load(&self, shards: &[ShardKey]) -> Vec<Result<Option<Checkpoint>, CheckpointError>> {
        let (database, keys) = (self.database.clone(), shards.to_vec());
        let work = move || read(&database, &keys);
        blocking(shards.len(), work, CheckpointError::unavailable).await
    }

    async fn list(
        &self,
        application: &str,
        stream: &str,
    ) -> Result<Option<Vec<(ShardId, Checkpoint)>>, CheckpointError> {
        let database = self.database.clone();
        let (application, stream) = (application.to_owned(), stream.to_owned());
        // `blocking` returns a list of results; this list has one result, which contains all rows.
        let work = move || Ok(vec![Ok(list(&database, &application, &stream)?)]);
        let mut listed = blocking(1, work, CheckpointError::unavailable).await;
        let listed = listed.pop();
        let none = || Err(CheckpointError::unavailable("the database returned no result"));
        listed.unwrap_or_else(none).map(Some)
    }

    fn name(&self) -> Cow<'_, str> {
        format!("redb:{}", self.path.display()).into()
    }

    async fn save(&self, checkpoints: &[(ShardKey, Checkpoint)]) -> Vec<Result<(), CheckpointError>> {
        let (database, rows) = (self.database.clone(), checkpoints.to_vec());
        let work = move || {
            write(&database, &rows)?;
            Ok(rows.iter().map(|_| Ok(())).collect())
        };
        blocking(checkpoints.len(), work, CheckpointError::unavailable).await
    }
}

type Results<T> = Vec<Result<T, CheckpointError>>;

fn read(database: &Database, keys: &[ShardKey]) -> Result<Results<Option<Checkpoint>>, BoxError> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(TABLE) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(keys.iter().map(|_| Ok(None)).collect()),
        Err(error) => return Err(error.into()),
    };
    keys.iter()
        .map(|key| {
            let stored = table.get((&*key.application, &*key.stream, key.shard.as_str()))?;
            Ok(stored.map(|row| decode(key, row.value())).transpose())
        })
        .collect()
}

fn list(
    database: &Database,
    application: &str,
    stream: &str,
) -> Result<Vec<(ShardId, Checkpoint)>, BoxError> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(TABLE) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut listed = Vec::new();
    for row in table.range((application, stream, "")..)? {
        let (key, row) = row?;
        let (of, at, shard) = key.value();
        if (of, at) != (application, stream) {
            break;
        }
        let key = ShardKey::new(application, stream, shard.into());
        if let Ok(checkpoint) = decode(&key, row.value()) {
            listed.push((key.shard, checkpoint));
        }
    }
    Ok(listed)
}

fn write(database: &Database, rows: &[(ShardKey, Checkpoint)]) -> Result<(), BoxError> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(TABLE)?;
        for (key, checkpoint) in rows {
            let row = serde_json::to_vec(&Row {
                position: checkpoint.position().clone(),
                ahead: checkpoint.ahead().map(|ahead| BASE64.encode(ahead.to_bytes())),
                read_until: checkpoint.read_until_millis(),
                starts: checkpoint.starts().map(ToString::to_string),
                stream_created: checkpoint.stream_created_millis(),
            })?;
            table.insert(
                (&*key.application, &*key.stream, key.shard.as_str()),
                row.as_slice(),
            )?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn decode(key: &ShardKey, bytes: &[u8]) -> Result<Checkpoint, CheckpointError> {
    let row: Row = serde_json::from_slice(bytes).map_err(|error| CheckpointError::Corrupt {
        shard: key.shard.clone(),
        text: String::from_utf8_lossy(bytes).chars().take(200).collect(),
        source: error.into(),
    })?;
    let starts = row.starts.and_then(|starts| starts.parse().ok());
    let checkpoint = Checkpoint::at(row.position)
        .with_read_until_millis(row.read_until)
        .with_stream_created_millis(row.stream_created)
        .with_starts(starts.unwrap_or_default());
    let Some(ahead) = row.ahead else {
        return Ok(checkpoint);
    };
    let ahead = BASE64
        .decode(ahead)
        .ok()
        .and_then(|bytes| SettledAhead::from_bytes(&bytes).ok());
    Ok(match ahead {
        Some(ahead) => checkpoint.with_ahead(ahead),
        None => {
            tracing::warn!(shard = %key.shard, "settled-ahead list ignored: unreadable; its records are processed again");
            checkpoint
        }
    })
}
