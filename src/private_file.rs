//! Files that hold payloads, or what tells of them: only their owner may read them.

#[cfg(feature = "redb")]
use std::fs::File;
use std::fs::OpenOptions;
#[cfg(feature = "redb")]
use std::io;
#[cfg(feature = "redb")]
use std::path::{Path, PathBuf};

#[cfg(feature = "redb")]
use redb::backends::FileBackend;
#[cfg(feature = "redb")]
use redb::{Database, DatabaseError, StorageError};

/// Options that create a file with the mode 0600 on Unix, whatever the umask allows. A file that exists keeps its mode.
pub(crate) fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Why a database file is not open.
#[cfg(feature = "redb")]
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
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

/// Opens a database, or creates it.
#[cfg(feature = "redb")]
pub(crate) fn database(path: &Path) -> Result<Database, FileError> {
    let io_error = |source| FileError::Io {
        path: path.to_owned(),
        source,
    };
    let file: File = options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(io_error)?;
    let opened = FileBackend::new(file).and_then(|file| Database::builder().create_with_backend(file));
    opened.map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => FileError::InUse {
            path: path.to_owned(),
        },
        DatabaseError::Storage(StorageError::Io(source)) if source.kind() != io::ErrorKind::InvalidData => {
            io_error(source)
        }
        source => FileError::Unreadable {
            path: path.to_owned(),
            source,
        },
    })
}
