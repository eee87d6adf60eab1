//! An idempotency store in an embedded database file.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use super::in_progress::InProgress;
use super::{Claim, Claimed, Completion, IdempotencyStore, Key, PayloadHash, Status, StoreError};
use crate::embedded_db::{self, OpenError, blocking};
use crate::failure::BoxError;

/// Remembers completed keys in a [redb](https://www.redb.org) file, fsynced at every write. Only one process
/// at a time can open the file, so claims are kept in memory: after a crash no old claim blocks a record.
/// Clones share both.
#[derive(Clone)]
pub struct Redb(Arc<Shared>);

struct Shared {
    database: Database,
    path: PathBuf,
    claims: Mutex<InProgress>,
}

/// A completed key: owner, end of the retention in milliseconds since 1970, SHA-256 of the payload.
type Row = (u128, u64, Option<[u8; 32]>);
const COMPLETED: TableDefinition<'_, &str, Row> = TableDefinition::new("completed");
/// The completed keys, ordered by the end of their retention.
const FORGET: TableDefinition<'_, (u64, &str), ()> = TableDefinition::new("forget");
/// The number of due keys that a write may delete beyond the number of keys that it adds.
const FORGET_AT_ONCE: usize = 16;

impl Redb {
    /// Opens the file, or creates it. Its folder must exist. Checkpoints need a file of their own.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::InUse`] if another process has the file open. Returns
    /// [`StoreError::Unusable`] if the file cannot be opened or is not a redb database.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref().to_path_buf();
        Ok(Redb(Arc::new(Shared {
            database: embedded_db::open(&path)?,
            path,
            claims: Mutex::default(),
        })))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        count: usize,
        work: impl FnOnce(&Shared) -> Result<Vec<T>, BoxError> + Send + 'static,
    ) -> Vec<Result<T, StoreError>> {
        let shared = self.0.clone();
        let work = move || Ok(work(&shared)?.into_iter().map(Ok).collect());
        blocking(count, work, StoreError::unavailable).await
    }
}

impl From<OpenError> for StoreError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::InUse { path } => StoreError::InUse { path },
            error => StoreError::Unusable(error.into()),
        }
    }
}

impl Shared {
    /// Returns those of these keys that are completed and whose retention has not ended.
    fn look_up<'a>(
        &self,
        keys: impl Iterator<Item = (&'a Key, SystemTime)>,
    ) -> Result<Vec<Option<Status>>, BoxError> {
        let transaction = self.database.begin_read()?;
        let table = match transaction.open_table(COMPLETED) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(keys.map(|_| None).collect()),
            Err(error) => return Err(error.into()),
        };
        keys.map(|(key, now)| {
            let row = table.get(key.as_str())?.map(|row| row.value());
            Ok(row
                .filter(|(_, keep_until, _)| *keep_until >= millis(now))
                .map(|(_, _, payload)| Status::Completed {
                    payload: payload.map(PayloadHash::from_bytes),
                }))
        })
        .collect()
    }

    fn claim(&self, claims: &[Claim]) -> Result<Vec<Claimed>, BoxError> {
        // The lock is kept during the read, so that no concurrent completion is missed.
        let mut in_progress = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let completed = self.look_up(claims.iter().map(|claim| (&claim.key, claim.now)))?;
        let claimed = claims.iter().zip(completed);
        Ok(claimed
            .map(|(claim, completed)| match completed {
                Some(completed) => completed.into(),
                None => in_progress.claim(claim),
            })
            .collect())
    }

    fn complete(&self, claims: &[Claim]) -> Result<Vec<Completion>, BoxError> {
        let mut in_progress = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let mut results = Vec::with_capacity(claims.len());
        let transaction = self.database.begin_write()?;
        {
            let mut completed = transaction.open_table(COMPLETED)?;
            let mut forget = transaction.open_table(FORGET)?;
            for claim in claims {
                let key = claim.key.as_str();
                let before = completed.get(key)?.map(|row| row.value());
                let (owner, keep_until) = (claim.owner.number(), millis(claim.keep_until));
                let is_anothers =
                    before.is_some_and(|(before, until, _)| before != owner && until >= millis(claim.now));
                if is_anothers || in_progress.is_anothers(claim) {
                    results.push(Completion::Lost);
                    continue;
                }
                if let Some((_, until, _)) = before {
                    forget.remove((until, key))?;
                }
                let payload = claim.payload.map(PayloadHash::to_bytes);
                completed.insert(key, (owner, keep_until, payload))?;
                forget.insert((keep_until, key), ())?;
                results.push(Completion::Stored);
            }
            let now = claims
                .iter()
                .map(|claim| millis(claim.now))
                .max()
                .unwrap_or_default();
            let due: Vec<(u64, String)> = forget
                .range::<(u64, &str)>(..(now, ""))?
                .take(FORGET_AT_ONCE + claims.len())
                .map(|row| row.map(|(key, _)| (key.value().0, key.value().1.to_owned())))
                .collect::<Result<_, _>>()?;
            for (until, key) in due {
                forget.remove((until, key.as_str()))?;
                completed.remove(key.as_str())?;
            }
        }
        transaction.commit()?;
        claims.iter().for_each(|claim| in_progress.release(claim));
        Ok(results)
    }
}

#[async_trait]
impl IdempotencyStore for Redb {
    async fn claim(&self, claims: &[Claim]) -> Vec<Result<Claimed, StoreError>> {
        let claims = claims.to_vec();
        self.blocking(claims.len(), move |shared| shared.claim(&claims))
            .await
    }

    async fn complete(&self, claims: &[Claim]) -> Vec<Result<Completion, StoreError>> {
        let claims = claims.to_vec();
        self.blocking(claims.len(), move |shared| shared.complete(&claims))
            .await
    }

    async fn release(&self, claims: &[Claim]) -> Vec<Result<(), StoreError>> {
        let mut in_progress = self.0.claims.lock().unwrap_or_else(PoisonError::into_inner);
        claims.iter().for_each(|claim| in_progress.release(claim));
        claims.iter().map(|_| Ok(())).collect()
    }

    async fn status(&self, keys: &[Key], now: SystemTime) -> Vec<Result<Option<Status>, StoreError>> {
        let keys = keys.to_vec();
        self.blocking(keys.len(), move |shared| {
            let in_progress = shared.claims.lock().unwrap_or_else(PoisonError::into_inner);
            let completed = shared.look_up(keys.iter().map(|key| (key, now)))?;
            let status = keys.iter().zip(completed);
            Ok(status
                .map(|(key, completed)| completed.or_else(|| in_progress.status(key)))
                .collect())
        })
        .await
    }

    fn name(&self) -> Cow<'_, str> {
        format!("redb:{}", self.0.path.display()).into()
    }
}

impl fmt::Debug for Redb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redb")
            .field("path", &self.0.path)
            .finish_non_exhaustive()
    }
}

fn millis(time: SystemTime) -> u64 {
    let since: Duration = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
