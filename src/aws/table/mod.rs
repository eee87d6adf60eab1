//! A DynamoDB table of a store: its existence, its items, its attributes, and the errors of its calls.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use tokio::sync::OnceCell;

use super::{FailedCall, Located};
use crate::failure::BoxError;
use crate::protection::Backoff;

pub(crate) mod attribute;
mod existence;
mod items;
mod pages;
mod time_to_live;

pub(crate) use attribute::Item;
pub(crate) use items::MOST_KEYS;
pub(crate) use pages::Query;

/// The delay between checks of a table that is being created, and between reads of unprocessed keys.
const LOOKS: Backoff = Backoff::exponential()
    .base(Duration::from_millis(20))
    .cap(Duration::from_secs(1));

/// The requirements of a store for its table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    /// The name of the kind in errors.
    pub(crate) what: &'static str,
    /// The partition key, a string. The table has no sort key.
    pub(crate) key: &'static str,
    /// The attribute with the time, in seconds since 1970, after which DynamoDB may delete an item.
    pub(crate) expiration: Option<&'static str>,
    /// The index that a new table gets.
    pub(crate) index: Option<Index>,
}

/// A global secondary index with the keys alone. Its sort key is the table's key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Index {
    pub(crate) name: &'static str,
    /// The partition key, a string.
    pub(crate) key: &'static str,
}

/// A table, as one store and its clones use it.
#[derive(Debug)]
pub(crate) struct Table {
    client: Located<Client>,
    name: Arc<str>,
    kind: Kind,
    /// Set once the table is known to be usable.
    ready: OnceCell<()>,
    /// True if this process has seen the table missing or in creation, and has not enabled its time to live.
    is_new: AtomicBool,
}

/// The reason why a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TableError {
    /// A call failed, or the table is not ready.
    #[error(transparent)]
    Unavailable(#[from] BoxError),
    /// The table belongs to another program.
    #[error("the table {name:?} is not a {what}: its key is {keys:?}, not {key:?}; choose another name")]
    OfAnotherKind {
        name: String,
        what: &'static str,
        keys: Vec<String>,
        key: &'static str,
    },
}

impl Table {
    /// Creates a table that is checked, and created if it is missing, by the first call of
    /// [`ready`](Table::ready).
    pub(crate) fn new(client: Located<Client>, name: Arc<str>, kind: Kind) -> Self {
        Table {
            client,
            name,
            kind,
            ready: OnceCell::new(),
            is_new: AtomicBool::new(false),
        }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Describes a failed call that reads or writes items. `verb` completes the sentence "cannot … the
    /// table"; `action` is the IAM action that the call needs.
    pub(crate) fn failed<E, R>(&self, verb: &str, action: &'static str, error: SdkError<E, R>) -> TableError
    where
        E: Error + ProvideErrorMetadata + Send + Sync + 'static,
        R: fmt::Debug + Send + Sync + 'static,
    {
        TableError::Unavailable(self.failed_call(verb, action, error).into())
    }

    fn failed_call<E, R>(&self, verb: &str, action: &'static str, error: SdkError<E, R>) -> FailedCall
    where
        E: Error + ProvideErrorMetadata + Send + Sync + 'static,
        R: fmt::Debug + Send + Sync + 'static,
    {
        self.client
            .failed(format!("{verb} the table {:?}", self.name), action, error)
    }
}

/// Returns true if the item does not meet the condition of the write.
pub(crate) fn is_condition_failure(error: &impl ProvideErrorMetadata) -> bool {
    error.code() == Some("ConditionalCheckFailedException")
}
