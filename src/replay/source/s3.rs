//! Letters in a bucket.

use std::collections::VecDeque;
use std::fmt;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::error::ProvideErrorMetadata;
use futures_util::stream::{self, StreamExt as _};

use super::{DeadLetterSource, Handle, Message, PAGE_BYTES, SourceError};
use crate::failure::BoxError;
use crate::sdk;

/// Reads the objects of a bucket, or those below a [prefix](S3::prefix), in the order of their keys: that of
/// [`dead_letter::S3`](crate::dead_letter::S3) has the letters of each shard in their order. Those that end with `.payload`
/// belong to letters elsewhere and are passed over.
///
/// What is driven again is deleted; in a bucket with versions that leaves a delete marker.
///
/// Permissions: `s3:ListBucket` on the bucket, `s3:GetObject` and `s3:DeleteObject` on the objects.
pub struct S3 {
    client: Client,
    bucket: String,
    prefix: String,
    owner: Option<String>,
    /// Keys and their sizes, listed and not read.
    listed: VecDeque<(String, usize)>,
    /// None before the first listing and after the last.
    next: Option<String>,
    begun: bool,
}

/// So many objects are read, or deleted, beside each other.
const CALLS: usize = 16;
const PAGE: usize = 500;

impl S3 {
    /// The letters in this bucket.
    pub fn new(client: Client, bucket: impl Into<String>) -> Self {
        S3 {
            client: sdk::s3::with_timeout(&client, sdk::ATTEMPT_TIMEOUT),
            bucket: bucket.into(),
            prefix: String::new(),
            owner: None,
            listed: VecDeque::new(),
            next: None,
            begun: false,
        }
    }

    /// What each key begins with. Default: nothing.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The account that the bucket must belong to. Default: not looked at.
    #[must_use]
    pub fn expected_bucket_owner(mut self, account: impl Into<String>) -> Self {
        self.owner = Some(account.into());
        self
    }

    async fn list(&mut self) -> Result<(), SourceError> {
        let call = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(&self.prefix)
            .set_continuation_token(self.next.take())
            .set_expected_bucket_owner(self.owner.clone());
        let page = call.send().await.map_err(|error| match error.code() {
            Some("NoSuchBucket") => SourceError::Missing {
                place: format!("bucket {:?}", self.bucket),
            },
            _ => SourceError::unavailable(self.name(), error),
        })?;
        self.begun = true;
        self.next = page.next_continuation_token;
        for object in page.contents.unwrap_or_default() {
            if let Some(key) = object.key
                && !key.ends_with(".payload")
            {
                let bytes = usize::try_from(object.size.unwrap_or(0)).unwrap_or(0);
                self.listed.push_back((key, bytes));
            }
        }
        Ok(())
    }

    /// `None` if it is gone by now.
    async fn object(&self, key: &str) -> Result<Option<Message>, BoxError> {
        let call = self.client.get_object().bucket(&self.bucket).key(key);
        let object = match call.set_expected_bucket_owner(self.owner.clone()).send().await {
            Ok(object) => object,
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(|error| error.is_no_such_key()) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let body = object.body.collect().await?.into_bytes();
        let place = format!("s3://{}/{key}", self.bucket);
        Ok(Some(Message::new(place, body, Handle(key.to_owned()))))
    }
}

#[async_trait]
impl DeadLetterSource for S3 {
    async fn read(&mut self) -> Result<Vec<Message>, SourceError> {
        loop {
            while self.listed.len() < PAGE && (!self.begun || self.next.is_some()) {
                self.list().await?;
            }
            let (mut keys, mut bytes) = (Vec::new(), 0);
            while let Some((_, size)) = self.listed.front()
                && keys.len() < PAGE
                && (keys.is_empty() || bytes + size <= PAGE_BYTES)
            {
                bytes += size;
                keys.extend(self.listed.pop_front().map(|(key, _)| key));
            }
            if keys.is_empty() {
                return Ok(Vec::new());
            }
            let calls: Vec<_> = keys.iter().map(|key| self.object(key)).collect();
            let objects: Vec<_> = stream::iter(calls).buffered(CALLS).collect().await;
            let objects: Result<Vec<Option<Message>>, BoxError> = objects.into_iter().collect();
            let objects = objects.map_err(|error| SourceError::unavailable(self.name(), error))?;
            let messages: Vec<Message> = objects.into_iter().flatten().collect();
            if !messages.is_empty() {
                return Ok(messages);
            }
        }
    }

    async fn remove(&mut self, messages: &[Handle]) -> Vec<Result<(), SourceError>> {
        // Each by itself: not every store that speaks S3 takes the checksum that DeleteObjects asks for.
        let calls = messages.iter().map(|Handle(key)| {
            let call = self.client.delete_object().bucket(&self.bucket).key(key);
            let call = call.set_expected_bucket_owner(self.owner.clone()).send();
            let name = self.name();
            async move {
                let deleted = call.await;
                deleted
                    .map(drop)
                    .map_err(|error| SourceError::unavailable(name, error))
            }
        });
        let calls: Vec<_> = calls.collect();
        stream::iter(calls).buffered(CALLS).collect().await
    }

    fn removes(&self) -> bool {
        true
    }

    async fn estimate(&mut self) -> Option<u64> {
        let mut pages = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(&self.prefix)
            .set_expected_bucket_owner(self.owner.clone())
            .into_paginator()
            .send();
        let mut objects = 0;
        while let Some(page) = pages.next().await {
            let keys = page.ok()?.contents.unwrap_or_default();
            let letters = keys
                .iter()
                .filter(|object| object.key().is_some_and(|key| !key.ends_with(".payload")));
            objects += letters.count() as u64;
        }
        Some(objects)
    }

    fn name(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix)
    }
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3")
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
