//! Files with payloads, or with data about payloads: only their owner may read them.

use std::fs::OpenOptions;

/// Returns options that create a file with mode 0600 on Unix, whatever the umask allows. An existing file
/// keeps its mode.
pub(crate) fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}
