//! The few file operations that the sink is made of.

use std::ffi::OsString;
use std::fs::{self, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::private_file;

/// A disk. The double of the tests makes any operation fail and forgets what was not synced.
pub(super) trait Disk: Send + 'static {
    type File: DiskFile;

    /// Opens a file for reading and appending, or makes it, and locks it.
    fn open(&self, path: &Path) -> io::Result<Locked<Self::File>>;

    /// Makes a file that must not exist yet, and locks it.
    fn create(&self, path: &Path) -> io::Result<Self::File>;

    /// Makes the names in this folder durable.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// The names in this folder.
    fn names(&self, folder: &Path) -> io::Result<Vec<OsString>>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// Whether somebody else holds the file.
pub(super) enum Locked<F> {
    Ours(F),
    Theirs,
}

/// A file that only grows at its end; it stays locked until it and its clones are dropped.
pub(super) trait DiskFile: Read + Seek + Write + Send + Sized + 'static {
    /// A second handle to the same open file.
    fn share(&self) -> io::Result<Self>;

    /// Waits until everything written is on the disk. An error as well if the file has no name any
    /// more: what is in it then is lost.
    fn sync(&self) -> io::Result<()>;

    /// Cuts the file to so many bytes.
    fn truncate(&mut self, bytes: u64) -> io::Result<()>;
}

/// The operating system's disk.
#[derive(Debug)]
pub(super) struct Os;

impl Disk for Os {
    type File = fs::File;

    fn open(&self, path: &Path) -> io::Result<Locked<fs::File>> {
        lock(
            private_file::options()
                .read(true)
                .append(true)
                .create(true)
                .open(path)?,
        )
    }

    fn create(&self, path: &Path) -> io::Result<fs::File> {
        let file = private_file::options()
            .read(true)
            .append(true)
            .create_new(true)
            .open(path)?;
        match lock(file)? {
            Locked::Ours(file) => Ok(file),
            Locked::Theirs => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        // Elsewhere a folder cannot be opened, and its names are durable without.
        if cfg!(unix) {
            fs::File::open(folder)?.sync_all()?;
        }
        Ok(())
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(folder)?
            .map(|entry| Ok(entry?.file_name()))
            .collect()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

fn lock(file: fs::File) -> io::Result<Locked<fs::File>> {
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    match file.try_lock() {
        Ok(()) => Ok(Locked::Ours(file)),
        Err(TryLockError::WouldBlock) => Ok(Locked::Theirs),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

impl DiskFile for fs::File {
    fn share(&self) -> io::Result<Self> {
        self.try_clone()
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()?;
        #[cfg(unix)]
        if std::os::unix::fs::MetadataExt::nlink(&self.metadata()?) == 0 {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the file was deleted while it was open",
            ));
        }
        Ok(())
    }

    fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }
}

/// The folder that a file is in.
pub(super) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// The file with this number behind `path`: `<path>.1`.
pub(super) fn successor(path: &Path, number: u64) -> PathBuf {
    with_suffix(path, &format!(".{number}"))
}

/// The path with something added to its name.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The numbers of the successors that exist, in order.
pub(super) fn successors(disk: &impl Disk, path: &Path) -> io::Result<Vec<u64>> {
    let Some(own) = path.file_name() else {
        return Ok(Vec::new());
    };
    let mut numbers: Vec<u64> = disk
        .names(folder(path))?
        .iter()
        .filter_map(|name| {
            let rest = name
                .as_encoded_bytes()
                .strip_prefix(own.as_encoded_bytes())?
                .strip_prefix(b".")?;
            let number = std::str::from_utf8(rest).ok()?.parse::<u32>().ok()?.into();
            // Only as it is written here: no sign, no leading zeros.
            (successor(Path::new(own), number).as_os_str() == name.as_os_str()).then_some(number)
        })
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}
