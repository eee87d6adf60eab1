//! Reads dead letters from a file of JSON lines.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use tokio::task::spawn_blocking;

use super::{DeadLetterSource, Handle, Message, SourceError};
use crate::dead_letter::{ReadError, ReadLines, Storage};

/// Reads what a [`dead_letter::File`](crate::dead_letter::File) has written, including its successors
/// (`<path>.1`), in the order of writing.
///
/// Takes no lock, so that the sink may continue writing. A line that is being written during the read may be
/// read as an incomplete one.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    lines: Option<ReadLines>,
}

const PAGE: usize = 500;
/// The size at which a page is full, in bytes.
const PAGE_BYTES: usize = 16 * 1024 * 1024;

impl File {
    /// Creates a source for the file at this path.
    pub fn new(path: impl AsRef<Path>) -> Self {
        // The path is absolute because the ledger identifies the source by its name.
        let path = std::path::absolute(path.as_ref()).unwrap_or_else(|_| path.as_ref().to_path_buf());
        File {
            lines: Some(ReadLines::new(&path)),
            path,
        }
    }
}

fn page(lines: &mut ReadLines) -> Result<Vec<Message>, SourceError> {
    let (mut page, mut bytes) = (Vec::new(), 0);
    while page.len() < PAGE && bytes < PAGE_BYTES {
        let line = match lines.next() {
            None => break,
            Some(Ok(line)) => line,
            Some(Err(error)) => return Err(unreadable(error)),
        };
        bytes += line.text.len();
        let place = format!("line {} of {}", line.number, line.path.display());
        page.push(Message::new(place, line.text, Handle(String::new())));
    }
    Ok(page)
}

fn unreadable(error: ReadError) -> SourceError {
    match error {
        ReadError::File { path, source } if source.kind() == std::io::ErrorKind::NotFound => {
            let place = format!("file {}", path.display());
            SourceError::Missing { place }
        }
        error => SourceError::unavailable("the dead-letter file", error),
    }
}

#[async_trait]
impl DeadLetterSource for File {
    async fn read(&mut self) -> Result<Vec<Message>, SourceError> {
        // `None` only if an earlier read was dropped before its end, or has panicked.
        let mut lines = self.lines.take().unwrap_or_else(|| ReadLines::new(&self.path));
        let read = spawn_blocking(move || (page(&mut lines), lines)).await;
        let (page, lines) = read.map_err(|error| SourceError::unavailable(self.name(), error))?;
        self.lines = Some(lines);
        page
    }

    async fn estimate(&mut self) -> Option<u64> {
        let path = self.path.clone();
        let count = spawn_blocking(move || ReadLines::new(&path).filter(Result::is_ok).count());
        u64::try_from(count.await.ok()?).ok()
    }

    fn name(&self) -> String {
        format!("file:{}", self.path.display())
    }

    fn storage(&self) -> Storage {
        Storage::File(self.path.clone())
    }
}
