//! The file operations that the sink uses.

use std::ffi::OsString;
use std::fs::{self, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::private_file;

/// A disk. The tests replace it by one whose operations can fail, and which loses unsynced data.
pub(super) trait Disk: Send + 'static {
    type File: DiskFile;

    /// Opens or creates a file for reading and appending, and locks it.
    fn open(&self, path: &Path) -> io::Result<Locked<Self::File>>;

    /// Creates a file that must not exist yet, and locks it.
    fn create(&self, path: &Path) -> io::Result<Self::File>;

    /// Makes the file names in this folder durable.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// Returns the file names in this folder.
    fn names(&self, folder: &Path) -> io::Result<Vec<OsString>>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// The result of locking a file: this sink has the lock, or another owner has it.
pub(super) enum Locked<F> {
    Ours(F),
    Theirs,
}

/// A file that grows only at its end. The file stays locked until it and its clones are dropped.
pub(super) trait DiskFile: Read + Seek + Write + Send + Sized + 'static {
    /// Returns a second handle to the same open file.
    fn share(&self) -> io::Result<Self>;

    /// Waits until everything written is on the disk. Also fails if the file has been deleted, because its
    /// content is lost then.
    fn sync(&self) -> io::Result<()>;

    /// Cuts the file to this length.
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
        // Other systems cannot open a folder, and make its names durable without a sync.
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

/// Returns the folder of a file.
pub(super) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Returns the path of the successor with this number: `<path>.1`.
pub(super) fn successor(path: &Path, number: u64) -> PathBuf {
    with_suffix(path, &format!(".{number}"))
}

/// Returns the path with a suffix added to its name.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Returns the numbers of the successors that exist, in order.
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
            // Only numbers as `successor` writes them: no sign, no leading zeros.
            (successor(Path::new(own), number).as_os_str() == name.as_os_str()).then_some(number)
        })
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}
