//! What others must not do meanwhile: be at the same source, or read what is being worked on.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use tokio::time::{Instant, sleep_until};

use super::ledger::{Ledger, LedgerError};
use super::source::DeadLetterSource;
use crate::failure::texts;

/// Works while the source keeps what it was given. `due`: when it is to do so next, however short each work is.
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
        // Others may read it then, and the ledger tells them what is done.
        if let Err(error) = source.keep().await {
            tracing::warn!(
                error = texts(&error),
                "letters that are worked on cannot be kept from others"
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

    /// The name of the source.
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

    /// Works while the lock is renewed. If it cannot be, the work is still ended: half of it would be repeated.
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
