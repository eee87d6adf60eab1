//! Payloads that are stored outside their dead letter.

use super::Replay;
use crate::dead_letter::DeadLetter;
use crate::failure::BoxError;

impl Replay {
    #[cfg(feature = "s3")]
    pub(super) async fn fetch_payload(&self, letter: &DeadLetter) -> Result<DeadLetter, BoxError> {
        let place = letter.payload_at.as_deref().unwrap_or_default();
        match self.payloads.iter().find(|store| store.holds(place)) {
            Some(store) => Ok(store.redeem(letter.clone()).await?),
            None => Err(format!(
                "cannot read the payload at {place}: its bucket is not allowed; use Replay::payloads or --payloads-from"
            )
            .into()),
        }
    }

    #[cfg(not(feature = "s3"))]
    pub(super) async fn fetch_payload(&self, letter: &DeadLetter) -> Result<DeadLetter, BoxError> {
        let place = letter.payload_at.as_deref().unwrap_or_default();
        Err(format!("cannot read the payload at {place}: enable the feature `s3`").into())
    }
}
