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

/// Appends letters to a file, one line of JSON each, fsynced before they are confirmed.
///
/// - One fsync a [`put`](DeadLetterSink::put), however many letters it brings. Puts take turns.
/// - One sink at a time: the file is locked, by `flock` on Unix, until the sink and its clones, which
///   share it, are dropped.
/// - After a write or an fsync that failed the file is not written to again: a new one is begun beside
///   it, `<path>.1`, then `<path>.2` and so on, and [`open`](File::open) goes on in the last of them.
///   [`read`](File::read) reads them all, in the order of writing. So leave them to this sink: do not
///   let a log rotation rename them.
/// - A file that was deleted while it was open counts as failed; its letters are not confirmed.
///
/// Letters are readable by whoever may read the file: set the folder's permissions accordingly.
#[derive(Clone)]
pub struct File {
    journal: Arc<Mutex<Journal<Os>>>,
    path: PathBuf,
    torn: Option<PathBuf>,
}

impl File {
    /// Opens the file, or makes it (not its folder). Blocks for a few file operations.
    ///
    /// A last line without a line feed is what a crash tore: its letter was never confirmed. It is
    /// moved to `<file>.torn-1` (or `-2` and so on: nothing is overwritten); see [`torn`](File::torn).
    ///
    /// # Errors
    /// [`FileError::Locked`] if another sink has the file open, [`FileError::Open`] if it cannot be
    /// opened, [`FileError::SetAside`] if a torn line cannot be moved away.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FileError> {
        // Absolute, so that a later change of the working directory moves no file of the sink.
        let path = std::path::absolute(path.as_ref()).map_err(|source| FileError::Open {
            path: path.as_ref().to_path_buf(),
            source,
        })?;
        let (journal, torn) = Journal::open(Os, &path)?;
        if let Some(torn) = &torn {
            tracing::warn!(
                path = %path.display(),
                torn = %torn.display(),
                "the dead-letter file ended in a torn line, which was never confirmed; it is set aside"
            );
        }
        Ok(File {
            journal: Arc::new(Mutex::new(journal)),
            path,
            torn,
        })
    }

    /// The path that it was opened with, made absolute. Letters may be in its successors (`<path>.1`)
    /// as well.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the torn last line is that [`open`](File::open) found, if it did.
    pub fn torn(&self) -> Option<&Path> {
        self.torn.as_deref()
    }

    /// What was written to this path and its successors, in the order of writing. A line that cannot
    /// be read is an error of its own, and reading goes on behind it.
    ///
    /// A letter may come twice: drop an id that was seen. Reading takes no lock, so that a letter
    /// being written at this moment may show as a torn line. Blocks while it reads.
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
        // The job owns the letters and the turn: a put that is dropped meanwhile neither tears a line
        // nor lets the next one in before this one has ended.
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

/// Why a dead-letter file cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// Another sink has it open, in this process or another.
    #[error(
        "the dead-letter file {} is open in another sink; stop the process that holds it (`lsof` names it) or choose another path",
        path.display()
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be opened, made or locked.
    #[error(
        "the dead-letter file {} cannot be opened; its folder must exist, and both must be writable",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// Its last line is torn and cannot be moved away. Nothing was changed that is not on the disk
    /// twice.
    #[error(
        "the torn last line of the dead-letter file {} cannot be set aside; make room beside it, or move the file away",
        path.display()
    )]
    SetAside {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}
