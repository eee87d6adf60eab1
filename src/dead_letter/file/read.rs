//! Reads the dead letters of a file and its successors.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::iter::FusedIterator;
use std::path::{Path, PathBuf};

use super::disk::{Os, successor, successors};
use crate::dead_letter::{DeadLetter, DecodeError};

/// An iterator over the dead letters of a file and its successors; see [`File::read`](super::File::read).
#[derive(Debug)]
pub struct ReadLetters(ReadLines);

impl ReadLetters {
    pub(super) fn new(path: &Path) -> Self {
        ReadLetters(ReadLines::new(path))
    }
}

impl Iterator for ReadLetters {
    type Item = Result<DeadLetter, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = match self.0.next()? {
            Ok(line) => line,
            Err(error) => return Some(Err(error)),
        };
        Some(
            DeadLetter::from_json_line(&line.text).map_err(|source| ReadError::Line {
                path: line.path,
                line: line.number,
                source,
            }),
        )
    }
}

impl FusedIterator for ReadLetters {}

/// An iterator over the lines of a file and its successors, whatever their content.
#[derive(Debug)]
pub(crate) struct ReadLines {
    // Last file first.
    files: Vec<PathBuf>,
    current: Option<Lines>,
    failed: Option<ReadError>,
}

#[derive(Debug)]
struct Lines {
    path: PathBuf,
    reader: BufReader<fs::File>,
    line: u64,
}

/// A line that is not empty.
pub(crate) struct Line {
    pub(crate) path: PathBuf,
    /// The line number, counted from 1.
    pub(crate) number: u64,
    pub(crate) text: Vec<u8>,
}

impl ReadLines {
    pub(crate) fn new(path: &Path) -> Self {
        let (numbers, failed) = match successors(&Os, path) {
            Ok(numbers) => (numbers, None),
            Err(error) => (Vec::new(), Some(ReadError::file(path, error))),
        };
        let mut files: Vec<PathBuf> = numbers
            .into_iter()
            .rev()
            .map(|number| successor(path, number))
            .collect();
        // If there are successors, the first file may have been removed after it was read.
        if failed.is_none() && (files.is_empty() || path.exists()) {
            files.push(path.to_path_buf());
        }
        ReadLines {
            files,
            current: None,
            failed,
        }
    }
}

impl Iterator for ReadLines {
    type Item = Result<Line, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        loop {
            let lines = match &mut self.current {
                Some(lines) => lines,
                current => {
                    let path = self.files.pop()?;
                    match fs::File::open(&path) {
                        Ok(file) => current.insert(Lines {
                            path,
                            reader: BufReader::new(file),
                            line: 0,
                        }),
                        Err(error) => return Some(Err(ReadError::file(&path, error))),
                    }
                }
            };
            match lines.next() {
                Some(Err(error @ ReadError::File { .. })) => {
                    self.current = None;
                    return Some(Err(error));
                }
                Some(line) => return Some(line),
                None => self.current = None,
            }
        }
    }
}

impl Lines {
    fn next(&mut self) -> Option<Result<Line, ReadError>> {
        let mut text = Vec::new();
        loop {
            text.clear();
            self.line += 1;
            match self.reader.read_until(b'\n', &mut text) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(Err(ReadError::file(&self.path, error))),
            }
            let line = text.trim_ascii();
            // A sink that continues in an old file starts with an empty line.
            if line.is_empty() {
                continue;
            }
            return Some(Ok(Line {
                path: self.path.clone(),
                number: self.line,
                text: line.to_vec(),
            }));
        }
    }
}

/// The part of a dead-letter file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// A line is not a dead letter, or is a torn one. Reading continues with the next line.
    #[error("line {line} of {} is not a dead letter that can be read", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line number, counted from 1.
        line: u64,
        /// The cause.
        #[source]
        source: DecodeError,
    },
    /// A file cannot be read, or not to its end. Reading continues with the next file.
    #[error("the dead-letter file {} cannot be read", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl ReadError {
    fn file(path: &Path, source: io::Error) -> Self {
        ReadError::File {
            path: path.to_path_buf(),
            source,
        }
    }
}
