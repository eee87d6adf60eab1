//! Wrappers that applications put around an error before the handler returns it.

use std::error::Error;
use std::io;
use std::sync::Arc;

use redrive::BoxError;

#[derive(Debug, thiserror::Error)]
#[error("storing failed")]
struct Named(#[source] BoxError);

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Transparent(BoxError);

pub(crate) type Layer = (&'static str, fn(BoxError) -> BoxError);

const ITSELF: Layer = ("itself", |error| error);
const NAMED: Layer = ("a named source", |error| Named(error).into());
const IO: Layer = ("io::Error::other", |error| io::Error::other(error).into());

/// The wrappers whose `source()` or `get_ref()` returns the error itself.
pub(crate) const SHOWING: [Layer; 3] = [ITSELF, NAMED, IO];

pub(crate) const ALL: [Layer; 7] = [
    ITSELF,
    NAMED,
    IO,
    ("transparent", |error| Transparent(error).into()),
    ("Arc", |error| {
        Box::new(Arc::<dyn Error + Send + Sync>::from(error))
    }),
    ("anyhow", |error| anyhow::Error::from_boxed(error).into()),
    ("anyhow with context", |error| {
        anyhow::Error::from_boxed(error).context("storing").into()
    }),
];
