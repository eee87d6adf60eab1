//! Payloads that are elsewhere.

use super::Replay;
use crate::dead_letter::DeadLetter;
use crate::failure::BoxError;

impl Replay {
    #[cfg(feature = "s3")]
    pub(super) async fn fetch_payload(&self, letter: &DeadLetter) -> Result<DeadLetter, BoxError> {
        use crate::dead_letter::S3;
        let place = letter.payload_at.as_deref().unwrap_or_default();
        let bucket = place
            .strip_prefix("s3://")
            .and_then(|place| place.split('/').next());
        match (&self.payloads, bucket) {
            (Some(client), Some(bucket)) => {
                let store = S3::new(client.clone(), bucket);
                Ok(store.redeem(letter.clone()).await?)
            }
            (None, _) => {
                Err(format!("its payload is at {place}, and there is no client to read it with").into())
            }
            _ => Err(format!("its payload is at {place}, which is no object of a bucket").into()),
        }
    }

    #[cfg(not(feature = "s3"))]
    pub(super) async fn fetch_payload(&self, letter: &DeadLetter) -> Result<DeadLetter, BoxError> {
        let place = letter.payload_at.as_deref().unwrap_or_default();
        Err(format!("its payload is at {place}, which is read with the feature `s3`").into())
    }
}
