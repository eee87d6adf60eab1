//! Files that hold payloads, or what tells of them: only their owner may read them.

#[cfg(feature = "redb")]
use std::fs::File;
use std::fs::OpenOptions;
#[cfg(feature = "redb")]
use std::path::Path;

#[cfg(feature = "redb")]
use redb::backends::FileBackend;
#[cfg(feature = "redb")]
use redb::{Database, DatabaseError};

/// Options that create a file with the mode 0600 on Unix, whatever the umask allows. A file that exists keeps its mode.
pub(crate) fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Opens a database, or creates it.
#[cfg(feature = "redb")]
pub(crate) fn database(path: &Path) -> Result<Database, DatabaseError> {
    let file: File = options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    Database::builder().create_with_backend(FileBackend::new(file)?)
}
