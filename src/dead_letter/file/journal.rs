//! Durable appending: one fsync for each put, and a new file after a failed write.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::FileError;
use super::disk::{Disk, DiskFile, Locked, folder, successor, successors, with_suffix};

/// The files of one sink.
pub(super) struct Journal<D: Disk> {
    disk: D,
    path: PathBuf,
    current: Option<Current<D::File>>,
    // Kept only for its lock. After a fault the sink writes to a successor of this file.
    _lock: D::File,
}

/// The file that the sink writes to.
struct Current<F> {
    file: F,
    path: PathBuf,
    // Whether the file may contain a confirmed dead letter.
    keep: bool,
    // Whether an earlier process wrote to the file, and this one has not yet.
    inherited: bool,
}

impl<D: Disk> Journal<D> {
    /// Opens the last of the files. Returns the path that its torn last line was moved to, if it had one.
    pub(super) fn open(disk: D, path: &Path) -> Result<(Self, Option<PathBuf>), FileError> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            |source| FileError::Open { path, source }
        };
        let open = |path: &Path| match disk.open(path).map_err(failed(path))? {
            Locked::Ours(file) => Ok(file),
            Locked::Theirs => Err(FileError::Locked {
                path: path.to_path_buf(),
            }),
        };
        let lock = open(path)?;
        let last = successors(&disk, path).map_err(failed(path))?.pop();
        let (mut file, current) = match last {
            Some(number) => {
                let last = successor(path, number);
                (open(&last)?, last)
            }
            None => (lock.share().map_err(failed(path))?, path.to_path_buf()),
        };
        // A file whose name is not on the disk yet would be lost with all its dead letters.
        disk.sync_folder(folder(path)).map_err(failed(path))?;
        let (torn, whole) = set_aside(&disk, &mut file, &current).map_err(|source| FileError::SetAside {
            path: current.clone(),
            source,
        })?;
        let journal = Journal {
            disk,
            path: path.to_path_buf(),
            current: Some(Current {
                file,
                path: current,
                keep: true,
                inherited: whole > 0,
            }),
            _lock: lock,
        };
        Ok((journal, torn))
    }

    /// Writes the lines, each with its line feed, and waits until they are on the disk. Returns the path of
    /// the file that contains them.
    pub(super) fn append(&mut self, lines: impl Iterator<Item = Vec<u8>>) -> io::Result<PathBuf> {
        // The file is taken out, and put back only after a success. When an fsync fails, Linux still marks
        // the pages clean: the next fsync reports success for bytes that never reached the disk. So the sink
        // must not write to that file again, even if a later fsync succeeds.
        let mut current = match self.current.take() {
            Some(current) => current,
            None => self.begin()?,
        };
        match write(&mut current, lines).and_then(|()| current.file.sync()) {
            Ok(()) => {
                current.keep = true;
                current.inherited = false;
                let path = current.path.clone();
                self.current = Some(current);
                Ok(path)
            }
            Err(error) => {
                tracing::warn!(
                    path = %current.path.display(),
                    error = ?error.kind(),
                    "dead-letter file abandoned after a failed write; the next dead letters go to a new file"
                );
                if !current.keep {
                    // Nothing in the file was confirmed. If it were kept, a full disk would leave one such
                    // file for every try. A failed removal loses nothing.
                    let _ = self.disk.remove(&current.path);
                }
                Err(error)
            }
        }
    }

    /// Creates a file numbered after all existing ones, so that the files stay in the order of writing.
    fn begin(&self) -> io::Result<Current<D::File>> {
        let last = successors(&self.disk, &self.path)?.pop().unwrap_or(0);
        let path = successor(&self.path, last + 1);
        let file = self.disk.create(&path)?;
        if let Err(error) = self.disk.sync_folder(folder(&path)) {
            let _ = self.disk.remove(&path);
            return Err(error);
        }
        Ok(Current {
            file,
            path,
            keep: false,
            inherited: false,
        })
    }
}

/// Writes all lines, many of them in one write call.
fn write<F: DiskFile>(to: &mut Current<F>, lines: impl Iterator<Item = Vec<u8>>) -> io::Result<()> {
    const ENOUGH: usize = 1024 * 1024;
    let mut buffer = Vec::new();
    if to.inherited {
        // The last fsync of an earlier process may have failed. Its last line feed can then be in the page
        // cache but not on the disk, and the next line would be appended to a damaged one.
        buffer.push(b'\n');
    }
    for line in lines {
        buffer.extend_from_slice(&line);
        if buffer.len() >= ENOUGH {
            to.file.write_all(&buffer)?;
            buffer.clear();
        }
    }
    to.file.write_all(&buffer)
}

/// Moves everything after the last line feed to a separate file. Returns the path of that file, and the
/// number of bytes that are left.
fn set_aside<D: Disk>(disk: &D, file: &mut D::File, path: &Path) -> io::Result<(Option<PathBuf>, u64)> {
    let end = file.seek(SeekFrom::End(0))?;
    let whole = end_of_last_line(file, end)?;
    if whole == end {
        return Ok((None, whole));
    }
    let (mut aside, torn) = create_aside(disk, path)?;
    file.seek(SeekFrom::Start(whole))?;
    io::copy(&mut Read::by_ref(file).take(end - whole), &mut aside)?;
    // The torn line may be cut off here only after it is durable in the other file.
    aside.sync()?;
    disk.sync_folder(folder(&torn))?;
    file.truncate(whole)?;
    file.sync()?;
    Ok((Some(torn), whole))
}

fn create_aside<D: Disk>(disk: &D, path: &Path) -> io::Result<(D::File, PathBuf)> {
    let mut number = 1u64;
    loop {
        let torn = with_suffix(path, &format!(".torn-{number}"));
        match disk.create(&torn) {
            Ok(file) => return Ok((file, torn)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Returns the position behind the last line feed, which is searched from the end.
fn end_of_last_line(file: &mut impl DiskFile, end: u64) -> io::Result<u64> {
    const STEP: u64 = 64 * 1024;
    let mut chunk = Vec::new();
    let mut to = end;
    while to > 0 {
        let from = to.saturating_sub(STEP);
        file.seek(SeekFrom::Start(from))?;
        chunk.clear();
        Read::by_ref(file).take(to - from).read_to_end(&mut chunk)?;
        if let Some(at) = chunk.iter().rposition(|&byte| byte == b'\n') {
            return Ok(from + at as u64 + 1);
        }
        to = from;
    }
    Ok(0)
}

#[cfg(test)]
mod tests;
