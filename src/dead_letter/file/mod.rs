//! A sink for one process: JSON lines in a file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use super::{DeadLetter, DeadLetterSink, Receipt, SinkError, Storage};
use crate::failure::BoxError;

mod disk;
mod journal;
mod read;

use disk::Os;
use journal::Journal;
pub(crate) use read::ReadLines;

pub use read::{ReadError, ReadLetters};

/// Appends dead letters to a file, one line of JSON each, and fsyncs them before they are confirmed.
///
/// - Each [`put`](DeadLetterSink::put) makes one fsync, however many dead letters it carries. Puts run one at
///   a time.
/// - Only one sink can have the file open: the file is locked, by `flock` on Unix. Clones of the sink share
///   the file. The lock ends when all of them are dropped.
/// - After a failed write or fsync, the sink does not write to the file again. It starts a new file in the
///   same folder, `<path>.1`, then `<path>.2` and so on. [`open`](File::open) continues in the last of these
///   files, and [`read`](File::read) reads them all in the order of writing. Do not let log rotation rename
///   them.
/// - If the file is deleted while it is open, writing fails and its dead letters are not confirmed.
///
/// Every user who may read the file can read the dead letters: set the folder's permissions accordingly.
#[derive(Clone)]
pub struct File {
    journal: Arc<Mutex<Journal<Os>>>,
    path: PathBuf,
    torn: Option<PathBuf>,
}

impl File {
    /// Opens the file, or creates it (but not its folder). Blocks for a few file operations.
    ///
    /// A last line without a line feed was torn by a crash, and its dead letter was never confirmed. The line
    /// is moved to `<file>.torn-1` (or `-2` and so on, so that nothing is overwritten); see
    /// [`torn`](File::torn).
    ///
    /// # Errors
    /// [`FileError::Locked`] if another sink has the file open, [`FileError::Open`] if it cannot be
    /// opened, [`FileError::SetAside`] if a torn line cannot be moved away.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FileError> {
        // The path is absolute, so that a later change of the working directory does not move the sink's
        // files.
        let path = std::path::absolute(path.as_ref()).map_err(|source| FileError::Open {
            path: path.as_ref().to_path_buf(),
            source,
        })?;
        let (journal, torn) = Journal::open(Os, &path)?;
        if let Some(torn) = &torn {
            tracing::warn!(
                path = %path.display(),
                torn = %torn.display(),
                "torn last line of the dead-letter file set aside; its dead letter was never confirmed"
            );
        }
        Ok(File {
            journal: Arc::new(Mutex::new(journal)),
            path,
            torn,
        })
    }

    /// Returns the path that the sink was opened with, made absolute. Successors (`<path>.1`) may also
    /// contain dead letters.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file with the torn last line that [`open`](File::open) set aside, if it found one.
    pub fn torn(&self) -> Option<&Path> {
        self.torn.as_deref()
    }

    /// Reads the dead letters of this path and its successors, in the order of writing. A line that cannot be
    /// read yields an error, and reading continues with the next line.
    ///
    /// A dead letter may occur twice: skip an id that was seen before. Reading takes no lock, so a dead
    /// letter that is being written at this moment may appear as a torn line. Each step of the iterator
    /// blocks.
    pub fn read(path: impl AsRef<Path>) -> ReadLetters {
        ReadLetters::new(path.as_ref())
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File")
            .field("path", &self.path)
            .field("torn", &self.torn)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl DeadLetterSink for File {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        if letters.is_empty() {
            return Vec::new();
        }
        // The blocking job owns the dead letters and the lock. A put that is dropped meanwhile neither tears
        // a line nor lets the next put start early.
        let mut journal = self.journal.clone().lock_owned().await;
        let owned = letters.to_vec();
        let written = spawn_blocking(move || {
            journal.append(owned.iter().map(|letter| {
                let mut line = letter.to_json_line();
                line.push(b'\n');
                line
            }))
        });
        let error: BoxError = match written.await {
            Ok(Ok(path)) => {
                let receipt = Receipt::new(path.display().to_string());
                return letters.iter().map(|_| Ok(receipt.clone())).collect();
            }
            Ok(Err(error)) => error.into(),
            Err(ended) => ended.into(),
        };
        let error: Arc<dyn std::error::Error + Send + Sync> = error.into();
        letters
            .iter()
            .map(|_| Err(SinkError::unavailable(error.clone())))
            .collect()
    }

    fn name(&self) -> String {
        format!("file:{}", self.path.display())
    }

    fn storage(&self) -> Vec<Storage> {
        vec![Storage::File(self.path.clone())]
    }
}

/// The reason why a dead-letter file cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// Another sink has the file open, in this process or another.
    #[error(
        "the dead-letter file {} is open in another sink; stop the process that holds it (`lsof` names it) or choose another path",
        path.display()
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be opened, created or locked.
    #[error(
        "the dead-letter file {} cannot be opened; its folder must exist, and both must be writable",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file's last line is torn and cannot be moved away. The line is not lost: it is cut off only once
    /// its copy is durable.
    #[error(
        "the torn last line of the dead-letter file {} cannot be set aside; free disk space, or move the file away",
        path.display()
    )]
    SetAside {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}
