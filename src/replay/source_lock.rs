//! Exclusive use of a source: one replay at a time, and messages in flight hidden from other readers.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use tokio::time::{Instant, sleep_until};

use super::ledger::{Ledger, LedgerError};
use super::source::DeadLetterSource;
use crate::failure::texts;

/// Runs `work` and calls [`DeadLetterSource::keep`] meanwhile. `due` is the time of the next call. The caller
/// passes the same `due` each time, so that many short pieces of work do not postpone that call.
pub(super) async fn kept<O>(
    source: &mut dyn DeadLetterSource,
    due: &mut Instant,
    work: impl Future<Output = O>,
) -> O {
    let Some(interval) = source.keep_interval() else {
        return work.await;
    };
    let mut work = pin!(work);
    loop {
        tokio::select! {
            biased;
            output = &mut work => return output,
            () = sleep_until(*due) => {}
        }
        *due = Instant::now() + interval;
        // Other readers may receive these messages then. The ledger tells those readers what is done.
        if let Err(error) = source.keep().await {
            tracing::warn!(
                error = texts(&error),
                "dead letters in flight not kept hidden; other readers may receive them"
            );
        }
    }
}

/// The ledger's lock on the source.
pub(super) struct Lock {
    ledger: Arc<dyn Ledger>,
    source: String,
    owner: String,
    taken: bool,
    renew_at: Instant,
}

impl Lock {
    pub(super) fn new(ledger: Arc<dyn Ledger>, source: String, owner: String) -> Self {
        Lock {
            ledger,
            source,
            owner,
            taken: false,
            renew_at: Instant::now(),
        }
    }

    /// Returns the name of the source.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    pub(super) async fn take(&mut self) -> Result<(), LedgerError> {
        self.ledger.lock(&self.source, &self.owner).await?;
        self.taken = true;
        if let Some(time) = self.ledger.lock_time() {
            self.renew_at = Instant::now() + time / 4;
        }
        Ok(())
    }

    pub(super) async fn give_back(&mut self) -> Result<(), LedgerError> {
        match self.taken {
            true => self.ledger.unlock(&self.source, &self.owner).await,
            false => Ok(()),
        }
    }

    /// Runs `work` and renews the lock meanwhile. If a renewal fails, `work` still runs to its end before the
    /// error is returned: a batch that is cut off would be repeated.
    pub(super) async fn kept_while<O>(&mut self, work: impl Future<Output = O>) -> Result<O, LedgerError> {
        if !self.taken || self.ledger.lock_time().is_none() {
            return Ok(work.await);
        }
        let mut work = pin!(work);
        let mut lost = None;
        loop {
            tokio::select! {
                biased;
                output = &mut work => return lost.map_or(Ok(output), Err),
                () = sleep_until(self.renew_at), if lost.is_none() => {
                    lost = self.take().await.err();
                }
            }
        }
    }
}
