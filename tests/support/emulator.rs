//! Servers that tests install below the target directory and run as processes of their own.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

const SUPERVISE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/supervise.py");

pub(crate) const HINT: &str = "REDRIVE_SKIP_EMULATORS=1 skips the tests that need it";

/// Whether tests that need one are to be skipped, the reason having been told.
pub(crate) fn is_skipped() -> bool {
    let skipped = std::env::var("REDRIVE_SKIP_EMULATORS").is_ok_and(|value| value == "1");
    if skipped {
        tell("skipped: REDRIVE_SKIP_EMULATORS is set");
    }
    skipped
}

/// Where one of this name is installed: below the target directory, wherever that is.
pub(crate) fn home(name: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("the target directory");
    target.join("emulators").join(name)
}

/// A command run by `supervise.py`, which ends it when this value is gone, even if the process was killed.
pub(crate) struct Supervised {
    supervisor: Child,
    log: File,
}

impl Supervised {
    /// Runs what `command` makes for the scratch directory given to it, which is removed in the end.
    pub(crate) fn spawn(home: &Path, command: impl FnOnce(&Path) -> Command) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let scratch = home.join("run").join(unique);
        let _ = fs::remove_dir_all(&scratch); // of a process that had the same id
        fs::create_dir_all(&scratch).expect("a scratch directory below the target directory");
        let output = File::create(scratch.join("log")).expect("a log in the scratch directory");
        // Opened now and by itself: it is to be read from, at a place of its own, when the directory is gone.
        let log = File::open(scratch.join("log")).expect("the log just made");

        let command = command(&scratch);
        let mut supervise = Command::new("python3");
        supervise.arg(SUPERVISE).arg(&scratch);
        supervise.arg(command.get_program()).args(command.get_args());
        supervise.envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        let supervisor = supervise
            .process_group(0) // a Ctrl-C for the test must leave it to clean up
            .stdin(Stdio::piped())
            .stdout(output.try_clone().expect("a second handle of the log"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run python3: {error}; {HINT}"));
        Self { supervisor, log }
    }

    /// How the command ended, if it has. (`Child::wait` would end it, closing standard input.)
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.supervisor.try_wait().expect("the status of a child")
    }

    /// The last lines it wrote.
    pub(crate) fn log_tail(&self) -> String {
        const LENGTH: u64 = 4096;
        let mut log = &self.log;
        let mut bytes = Vec::new();
        let end = log.seek(SeekFrom::End(0)).unwrap_or_default();
        let _ = log.seek(SeekFrom::Start(end.saturating_sub(LENGTH)));
        let _ = log.read_to_end(&mut bytes);
        format!("--- the end of its log ---\n{}", String::from_utf8_lossy(&bytes))
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // Closes standard input first, which is what ends the command.
        let _ = self.supervisor.wait();
    }
}

/// A port free a moment ago, for servers that cannot choose one themselves. Free on all interfaces, as some
/// listen on all of them, whatever they are told.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// Tells the person, not the test harness, which captures what is printed by `eprintln!`.
pub(crate) fn tell(message: &str) {
    let _ = writeln!(io::stderr(), "{message}");
}
