//! Files with payloads, or with what tells of them: only their owner may read them.

use std::fs::OpenOptions;

/// Options that create a file with the mode 0600 on Unix, whatever the umask allows. A file that exists keeps its mode.
pub(crate) fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}
