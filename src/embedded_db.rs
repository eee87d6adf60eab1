//! Access to redb, the embedded database: opens files, and calls redb on threads that may block.

use std::io;
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{Database, DatabaseError, StorageError};
use tokio::task::spawn_blocking;

use crate::external::failed_alike;
use crate::failure::BoxError;
use crate::private_file;

/// The reason why a database file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(
        "the database file {} is open in another process; stop that process (`lsof` names it), or choose another path",
        path.display()
    )]
    InUse { path: PathBuf },
    #[error(
        "cannot open the database file {}; its folder must exist, and both must be writable",
        path.display()
    )]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "cannot open the database file {}; move it away if it is not a redb database",
        path.display()
    )]
    Unreadable {
        path: PathBuf,
        #[source]
        source: DatabaseError,
    },
}

/// Opens a database file, or creates it.
pub(crate) fn open(path: &Path) -> Result<Database, OpenError> {
    let io_error = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    let file = private_file::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(io_error)?;
    let opened = FileBackend::new(file).and_then(|file| Database::builder().create_with_backend(file));
    opened.map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse {
            path: path.to_owned(),
        },
        DatabaseError::Storage(StorageError::Io(source)) if source.kind() != io::ErrorKind::InvalidData => {
            io_error(source)
        }
        source => OpenError::Unreadable {
            path: path.to_owned(),
            source,
        },
    })
}

/// Runs file access on a thread that may block. If the access fails as a whole, each of the `count` items
/// fails.
pub(crate) async fn blocking<T, E>(
    count: usize,
    work: impl FnOnce() -> Result<Vec<Result<T, E>>, BoxError> + Send + 'static,
    failed: impl Fn(BoxError) -> E,
) -> Vec<Result<T, E>>
where
    T: Send + 'static,
    E: Send + 'static,
{
    let result = match spawn_blocking(work).await {
        Ok(result) => result,
        Err(panicked) => Err(panicked.into()),
    };
    result.unwrap_or_else(|error| failed_alike(count, error, failed))
}
