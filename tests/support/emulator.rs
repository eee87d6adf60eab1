//! Servers that tests install below the target directory and run as separate processes.
//!
//! A server either belongs to one test ([`Supervised::spawn`]) or is shared by all test binaries of one
//! `cargo test` ([`shared`]). A shared server survives a crashed test, and ends with `cargo test`.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::{CommandExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const SUPERVISE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/support/supervise.py");
const POLL_INTERVAL: Duration = Duration::from_millis(50);

pub const HINT: &str = "REDRIVE_SKIP_EMULATORS=1 skips the tests that need it";

/// Returns whether tests that need an emulator are to be skipped. Prints the reason if they are.
pub fn is_skipped() -> bool {
    let skipped = std::env::var("REDRIVE_SKIP_EMULATORS").is_ok_and(|value| value == "1");
    if skipped {
        tell("skipped: REDRIVE_SKIP_EMULATORS is set");
    }
    skipped
}

/// Returns the root of the repository.
pub fn repository() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// Returns the target directory. Cargo runs tests and benches from `target/<profile>/deps`.
pub fn target() -> PathBuf {
    let program = std::env::current_exe().expect("the path of this program");
    let deps = program.ancestors().find(|folder| folder.ends_with("deps"));
    let target = deps.and_then(|deps| deps.parent()?.parent());
    target.expect("a test or a bench, run by cargo").to_path_buf()
}

/// Returns the folder in which the emulator of this name is installed.
pub fn home(name: &str) -> PathBuf {
    target().join("emulators").join(name)
}

/// A command run by `supervise.py`. Dropping this value ends the command; so does the death of this process,
/// even by a kill.
pub struct Supervised {
    supervisor: Child,
    log: File,
}

impl Supervised {
    /// Runs the command that `command` makes for a new scratch directory. The directory is removed at the
    /// end.
    pub fn spawn(home: &Path, command: impl FnOnce(&Path) -> Command) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Supervised::supervise(&home.join("run").join(unique), None, command)
    }

    /// Runs a command in this scratch directory until the process `owner` ends. Without an owner, the command
    /// runs until this value is dropped.
    fn supervise(scratch: &Path, owner: Option<u32>, command: impl FnOnce(&Path) -> Command) -> Self {
        let _ = fs::remove_dir_all(scratch); // an earlier process may have had the same id
        fs::create_dir_all(scratch).expect("a scratch directory below the target directory");
        let output = File::create(scratch.join("log")).expect("a log in the scratch directory");
        // A separate handle has its own read position. It is opened now, while the directory exists.
        let log = File::open(scratch.join("log")).expect("the log just made");

        let command = command(scratch);
        let mut supervise = Command::new("python3");
        supervise.arg(SUPERVISE);
        if let Some(owner) = owner {
            supervise.arg("--until-exit-of").arg(owner.to_string());
        }
        supervise.arg(scratch);
        supervise.arg(command.get_program()).args(command.get_args());
        supervise.envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        let supervisor = supervise
            .process_group(0) // a Ctrl-C of the test must not stop the cleanup
            .stdin(if owner.is_some() {
                Stdio::null()
            } else {
                Stdio::piped()
            })
            .stdout(output.try_clone().expect("a second handle of the log"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run python3: {error}; {HINT}"));
        Self { supervisor, log }
    }

    /// Returns the exit status of the command if it has ended. (`Child::wait` would end the command, because
    /// it closes standard input.)
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.supervisor.try_wait().expect("the status of a child")
    }

    /// Asks the command to shut down (SIGTERM).
    pub fn terminate(&self) {
        let pid = self.supervisor.id().to_string();
        let sent = Command::new("kill").args(["-USR1", &pid]).status();
        assert!(sent.is_ok_and(|status| status.success()), "no signal sent");
    }

    /// Returns the command's whole log.
    pub fn log(&self) -> String {
        let mut log = &self.log;
        let mut bytes = Vec::new();
        let _ = log.seek(SeekFrom::Start(0));
        let _ = log.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns the end of the command's log.
    pub fn log_tail(&self) -> String {
        const LENGTH: u64 = 4096;
        let mut log = &self.log;
        let mut bytes = Vec::new();
        let end = log.seek(SeekFrom::End(0)).unwrap_or_default();
        let _ = log.seek(SeekFrom::Start(end.saturating_sub(LENGTH)));
        let _ = log.read_to_end(&mut bytes);
        format!("--- the end of its log ---\n{}", String::from_utf8_lossy(&bytes))
    }

    /// Waits until the command ends on its own.
    pub fn wait(&mut self) -> ExitStatus {
        loop {
            match self.ended() {
                Some(status) => return status,
                None => thread::sleep(POLL_INTERVAL),
            }
        }
    }

    /// Waits until the server answers.
    ///
    /// # Errors
    ///
    /// Returns an error, with the end of the log, if the server ends or does not answer within `patience`.
    pub fn wait_ready(
        &mut self,
        patience: Duration,
        mut answers: impl FnMut() -> bool,
    ) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        loop {
            if answers() {
                return Ok(());
            }
            // LocalStack keeps running when another process has its port.
            let ended = self.ended().is_some() || self.log_tail().contains("CannotListenError");
            if ended || Instant::now() > deadline {
                let problem = if ended {
                    "ended while starting"
                } else {
                    "does not answer"
                };
                return Err(format!("{problem}\n{}", self.log_tail()));
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Ends a server before its owner ends.
    fn end(mut self) {
        let pid = self.supervisor.id().to_string();
        let _ = Command::new("kill").arg(pid).status();
        self.wait();
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // Without standard input the command runs until its owner ends.
        if self.supervisor.stdin.is_some() {
            // `wait` first closes standard input, which ends the command.
            let _ = self.supervisor.wait();
        }
    }
}

/// Returns the endpoint of a server that all test processes of one `cargo test` share.
///
/// The first process that calls this function starts the server. `command` makes the command that serves on
/// the given port, and `answers` reports whether that port answers. The server ends when `cargo test` ends. A
/// test that runs without cargo, for example in a debugger, has its own server.
///
/// # Panics
///
/// Panics if the server cannot be started, with the end of its log.
pub fn shared(
    name: &str,
    patience: Duration,
    command: impl Fn(&Path, u16) -> Command,
    answers: impl Fn(u16) -> bool,
) -> String {
    let (owner, unique) = owner();
    let home = home(name);
    let scratch = home.join("run").join(format!("shared-{unique}"));
    fs::create_dir_all(&home).expect("a folder below the target directory");
    let lock = File::create(home.join("shared.lock")).expect("a lock file");
    lock.lock().expect("the lock");
    // The file is removed with the scratch directory when the server ends.
    let noted = scratch.join("port");
    if let Some(port) = fs::read_to_string(&noted).ok().and_then(|port| port.parse().ok())
        && TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
    {
        return format!("http://127.0.0.1:{port}");
    }
    let mut problem = String::new();
    // Another process may take the port first. In that case the start is retried.
    for _ in 0..3 {
        let port = free_port();
        let mut server = Supervised::supervise(&scratch, Some(owner), |scratch| command(scratch, port));
        match server.wait_ready(patience, || answers(port)) {
            Ok(()) => {
                fs::write(&noted, port.to_string()).expect("a note in the scratch directory");
                return format!("http://127.0.0.1:{port}");
            }
            Err(error) => problem = error,
        }
        server.end();
    }
    panic!("cannot start {name}: the server {problem}; {HINT}");
}

/// Returns the process that owns the shared servers, and a name that no other process has had. The owner is
/// the `cargo` that runs the test, or the test itself.
fn owner() -> (u32, String) {
    let parent = parent_id();
    let is_cargo =
        fs::read_to_string(format!("/proc/{parent}/comm")).is_ok_and(|name| name.starts_with("cargo"));
    let owner = if is_cargo { parent } else { std::process::id() };
    // The format is "pid (name) state …"; the name may contain any character. The start time is the 20th
    // field after the name.
    let stat = fs::read_to_string(format!("/proc/{owner}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let started = after_name.split_whitespace().nth(19).unwrap_or("0");
    (owner, format!("{owner}-{started}"))
}

/// Sends an HTTP request to a port of this machine and returns the whole response.
///
/// # Errors
///
/// Returns an error if no process listens on the port, or if no response arrives within `patience`.
pub fn request(port: u16, patience: Duration, what: &str, headers: &str, body: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(patience))?;
    let length = body.len();
    write!(
        stream,
        "{what} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\
         {headers}Content-Length: {length}\r\n\r\n{body}"
    )?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply)
}

/// Returns a name that no other test of this or an earlier run uses. The tests of all binaries share the
/// servers.
pub fn unique(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
    format!("{name}-{process}-{count}-{now}")
}

/// Returns a port that was free a moment ago, for servers that cannot choose a port themselves. The port is
/// free on all interfaces, because some servers listen on all of them in spite of their settings.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// Prints a message for the user. The test harness captures `eprintln!`, but not this output.
pub fn tell(message: &str) {
    let _ = writeln!(io::stderr(), "{message}");
}
