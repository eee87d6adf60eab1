//! Concurrent PutObject calls.

use std::sync::Arc;

use aws_sdk_s3::primitives::ByteStream;
use futures_util::future::join_all;
use rand::RngExt as _;

use super::{S3, WRITE_METADATA};
use crate::dead_letter::Receipt;
use crate::dead_letter::schedule::{Entry, Request, Schedule, SharedError};

impl S3 {
    pub(super) async fn put_objects(
        &self,
        schedule: &Schedule,
        request: &Request,
    ) -> Vec<Result<Receipt, SharedError>> {
        join_all(schedule.entries(request).map(|entry| self.put_object(entry))).await
    }

    async fn put_object(&self, entry: &Entry) -> Result<Receipt, SharedError> {
        let call = self
            .writer
            .put_object()
            .bucket(&self.bucket)
            .key(&entry.place)
            .metadata(WRITE_METADATA, format!("{:016x}", rand::rng().random::<u64>()))
            .set_expected_bucket_owner(self.owner.clone())
            .body(ByteStream::from(entry.data.clone()));
        match call.send().await {
            Ok(_) => Ok(Receipt::new(format!("{}/{}", self.bucket, entry.place))),
            Err(error) => Err(Arc::new(error)),
        }
    }
}
