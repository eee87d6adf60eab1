//! Checks an idempotency store before the first record is read.

use super::{IdempotencyStore, Key, StoreError};
use crate::external::answer;
use crate::start_check::{CHECK_TIMEOUT, Unusable};
use crate::wall_clock;

/// Checks that an idempotency store answers.
pub(crate) async fn check_store(store: &dyn IdempotencyStore) -> Result<(), Unusable<StoreError>> {
    // No record has this key.
    let keys = [Key::of_check()];
    let answers = answer(
        "the idempotency store",
        CHECK_TIMEOUT,
        store.status(&keys, wall_clock::now()),
    )
    .await;
    match answers.map_err(Unusable::NotNow)?.pop() {
        // An unreadable entry under this key does not make the store unusable for other keys.
        None | Some(Ok(_) | Err(StoreError::Corrupt { .. })) => Ok(()),
        Some(Err(error)) => Err(match error.is_final() {
            true => Unusable::Never(error),
            false => Unusable::NotNow(error.into()),
        }),
    }
}
