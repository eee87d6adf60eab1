//! Payloads that are stored outside their dead letter.

use super::Replay;
use crate::dead_letter::{DeadLetter, redeem};
use crate::failure::BoxError;

impl Replay {
    pub(super) async fn fetch_payload(&self, letter: &DeadLetter) -> Result<DeadLetter, BoxError> {
        let place = letter.payload_at.as_deref().unwrap_or_default();
        match self.payloads.iter().find(|store| store.covers(place)) {
            Some(store) => Ok(redeem(&**store, letter.clone()).await?),
            None => Err(format!(
                "cannot read the payload at {place}: its bucket is not allowed; use Replay::payloads or --payloads-from"
            )
            .into()),
        }
    }
}
