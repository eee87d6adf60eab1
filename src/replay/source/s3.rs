//! Reads dead letters from a bucket.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::DateTime;
use futures_util::stream::{self, StreamExt as _};
use tokio::time::timeout;

use super::{DeadLetterSource, Handle, Message, PAGE_BYTES, SourceError};
use crate::aws::{self, Located};
use crate::dead_letter::{Storage, WRITE_METADATA};
use crate::failure::BoxError;

/// Reads the objects of a bucket, or those below a [prefix](S3::prefix), in the order of their keys. The keys
/// of [`dead_letter::S3`](crate::dead_letter::S3) keep the dead letters of each shard in order. Objects whose
/// key ends with `.payload` are ignored: they belong to other dead letters.
///
/// An object is deleted once it is replayed; in a bucket with versions that leaves a delete marker. An object
/// that was overwritten after it was read is not deleted ([`SourceError::Changed`]).
///
/// Only the beginning of an object larger than 32 MiB is read. No dead letter is that large.
///
/// Permissions: `s3:ListBucket` on the bucket, `s3:GetObject` and `s3:DeleteObject` on the objects.
pub struct S3 {
    client: Located<Client>,
    bucket: String,
    prefix: String,
    owner: Option<String>,
    /// Keys and sizes of objects that are listed and not read yet.
    listed: VecDeque<(String, usize)>,
    /// The next continuation token. `None` before the first listing and after the last.
    next: Option<String>,
    /// Every continuation token so far.
    tokens: HashSet<String>,
    begun: bool,
    /// The version of each object of the last page, by key.
    versions: HashMap<String, Version>,
}

/// The timeout for the bytes of one object. The timeout of an attempt covers only the headers.
const BODY_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// Identifies one write of an object. A second write of the same bytes has the same ETag, so that the ETag
/// alone does not distinguish the two.
#[derive(Debug, Clone, PartialEq)]
struct Version {
    etag: Option<String>,
    id: Option<String>,
    modified: Option<DateTime>,
    write: Option<String>,
}

/// Reads the version from a response to GetObject or HeadObject.
macro_rules! version {
    ($answer:expr) => {
        Version {
            etag: $answer.e_tag().map(str::to_owned),
            id: $answer.version_id().map(str::to_owned),
            modified: $answer.last_modified().copied(),
            write: $answer
                .metadata()
                .and_then(|metadata| metadata.get(WRITE_METADATA).cloned()),
        }
    };
}

/// The maximum number of objects that are read, or deleted, concurrently.
const CALLS: usize = 16;
const PAGE: usize = 500;
/// The size of the largest object that is read to its end, in bytes. The payload of a dead letter has at most
/// 10 MiB, a third more as base64. A message of Lambda has an event of up to 6 MB.
const LARGEST: usize = 32 * 1024 * 1024;
/// The part of a larger object that is read. It suffices to identify the kind of object.
const BEGINNING: &str = "bytes=0-65535";

impl S3 {
    /// Creates a source for the dead letters in this bucket.
    pub fn new(client: Client, bucket: impl Into<String>) -> Self {
        S3 {
            client: aws::s3::with_timeout(&client, aws::ATTEMPT_TIMEOUT),
            bucket: bucket.into(),
            prefix: String::new(),
            owner: None,
            listed: VecDeque::new(),
            next: None,
            tokens: HashSet::new(),
            begun: false,
            versions: HashMap::new(),
        }
    }

    /// Sets the prefix of the keys. Default: empty.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the account that must own the bucket. Default: not checked.
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
            .set_continuation_token(self.next.clone())
            .set_expected_bucket_owner(self.owner.clone());
        let page = call.send().await.map_err(|error| match error.code() {
            Some("NoSuchBucket") => SourceError::Missing {
                place: format!("bucket {:?}", self.bucket),
            },
            _ => SourceError::unavailable(self.name(), error),
        })?;
        let next = match (page.next_continuation_token, page.is_truncated) {
            (Some(token), _) if !self.tokens.insert(token.clone()) => {
                Err("its listing repeats a continuation token")
            }
            (None, Some(true)) => Err("its listing has more and no continuation token"),
            (next, _) => Ok(next),
        };
        self.next = next.map_err(|error| SourceError::unavailable(self.name(), error))?;
        self.begun = true;
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

    /// Returns the object; `None` if it no longer exists.
    async fn object(&self, key: &str) -> Result<Option<(Message, Version)>, BoxError> {
        let Some(mut object) = self.get(key, None).await? else {
            return Ok(None);
        };
        let is_large = |bytes: i64| usize::try_from(bytes).is_ok_and(|bytes| bytes > LARGEST);
        if object.content_length().is_some_and(is_large) {
            match self.get(key, Some(BEGINNING)).await? {
                Some(beginning) => object = beginning,
                None => return Ok(None),
            }
        }
        let version = version!(object);
        let body = timeout(BODY_TIMEOUT, object.body.collect()).await;
        let body = body
            .map_err(|_| "S3 did not send the whole object in time")??
            .into_bytes();
        let place = self.place(key);
        Ok(Some((Message::new(place, body, Handle(key.to_owned())), version)))
    }

    async fn get(&self, key: &str, range: Option<&str>) -> Result<Option<GetObjectOutput>, BoxError> {
        let call = self.client.get_object().bucket(&self.bucket).key(key);
        let call = call.set_range(range.map(str::to_owned));
        match call.set_expected_bucket_owner(self.owner.clone()).send().await {
            Ok(object) => Ok(Some(object)),
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(|error| error.is_no_such_key()) =>
            {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes an object if it is still the one that was read.
    async fn delete(&self, key: &str) -> Result<(), SourceError> {
        let unavailable = |error: BoxError| SourceError::unavailable(self.name(), error);
        let call = self.client.head_object().bucket(&self.bucket).key(key);
        let head = match call.set_expected_bucket_owner(self.owner.clone()).send().await {
            Ok(head) => head,
            Err(error) if error.as_service_error().is_some_and(|error| error.is_not_found()) => return Ok(()),
            Err(error) => return Err(unavailable(error.into())),
        };
        if self.versions.get(key) != Some(&version!(head)) {
            return Err(SourceError::Changed {
                place: self.place(key),
            });
        }
        let call = self.client.delete_object().bucket(&self.bucket).key(key);
        let deleted = call.set_expected_bucket_owner(self.owner.clone()).send().await;
        deleted.map(drop).map_err(|error| unavailable(error.into()))
    }

    fn place(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.bucket)
    }
}

#[async_trait]
impl DeadLetterSource for S3 {
    async fn read(&mut self) -> Result<Vec<Message>, SourceError> {
        self.versions.clear();
        loop {
            while self.listed.len() < PAGE && (!self.begun || self.next.is_some()) {
                self.list().await?;
            }
            let (mut keys, mut bytes) = (Vec::new(), 0);
            while let Some((_, size)) = self.listed.front()
                && keys.len() < PAGE
                && (keys.is_empty() || bytes + size <= PAGE_BYTES)
            {
                bytes += size.min(&LARGEST);
                keys.extend(self.listed.pop_front().map(|(key, _)| key));
            }
            if keys.is_empty() {
                return Ok(Vec::new());
            }
            let calls: Vec<_> = keys.iter().map(|key| self.object(key)).collect();
            let objects: Vec<_> = stream::iter(calls).buffered(CALLS).collect().await;
            let objects: Result<Vec<Option<(Message, Version)>>, BoxError> = objects.into_iter().collect();
            let objects = objects.map_err(|error| SourceError::unavailable(self.name(), error))?;
            let mut messages = Vec::new();
            for (message, version) in objects.into_iter().flatten() {
                self.versions.insert(message.handle.0.clone(), version);
                messages.push(message);
            }
            if !messages.is_empty() {
                return Ok(messages);
            }
        }
    }

    async fn remove(&mut self, messages: &[Handle]) -> Vec<Result<(), SourceError>> {
        // Deletes objects one by one: not every S3-compatible store accepts the checksum that DeleteObjects
        // requires.
        let calls: Vec<_> = messages.iter().map(|Handle(key)| self.delete(key)).collect();
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

    fn storage(&self) -> Storage {
        Storage::Objects {
            bucket: self.bucket.clone(),
            prefix: self.prefix.clone(),
        }
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
