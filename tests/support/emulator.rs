//! Servers that tests install below the target directory and run as processes of their own.
//!
//! A server either belongs to one test ([`Supervised::spawn`]) or is shared by all test binaries of one `cargo test`
//! ([`shared`]). A shared server survives a test that crashes, and ends with `cargo test`.

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

/// Returns whether tests that need an emulator are to be skipped, after saying so.
pub fn is_skipped() -> bool {
    let skipped = std::env::var("REDRIVE_SKIP_EMULATORS").is_ok_and(|value| value == "1");
    if skipped {
        tell("skipped: REDRIVE_SKIP_EMULATORS is set");
    }
    skipped
}

/// The root of the repository.
pub fn repository() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// The target directory, wherever it is: tests and benches are run from `target/<profile>/deps`.
pub fn target() -> PathBuf {
    let program = std::env::current_exe().expect("the path of this program");
    let deps = program.ancestors().find(|folder| folder.ends_with("deps"));
    let target = deps.and_then(|deps| deps.parent()?.parent());
    target.expect("a test or a bench, run by cargo").to_path_buf()
}

/// Where the emulator of this name is installed.
pub fn home(name: &str) -> PathBuf {
    target().join("emulators").join(name)
}

/// A command run by `supervise.py`, which ends it when this value is dropped, even if the process is killed.
pub struct Supervised {
    supervisor: Child,
    log: File,
}

impl Supervised {
    /// Runs what `command` makes for the scratch directory given to it, which is removed in the end.
    pub fn spawn(home: &Path, command: impl FnOnce(&Path) -> Command) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Supervised::supervise(&home.join("run").join(unique), None, command)
    }

    /// Runs a command in this scratch directory until `owner` ends, or until this value is dropped where there is none.
    fn supervise(scratch: &Path, owner: Option<u32>, command: impl FnOnce(&Path) -> Command) -> Self {
        let _ = fs::remove_dir_all(scratch); // of a process that had the same id
        fs::create_dir_all(scratch).expect("a scratch directory below the target directory");
        let output = File::create(scratch.join("log")).expect("a log in the scratch directory");
        // Opened now and by itself: it is to be read from, at a place of its own, when the directory is gone.
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
            .process_group(0) // a Ctrl-C for the test must leave it to clean up
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

    /// How the command ended, if it has. (`Child::wait` would end it, closing standard input.)
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.supervisor.try_wait().expect("the status of a child")
    }

    /// The last lines it wrote.
    pub fn log_tail(&self) -> String {
        const LENGTH: u64 = 4096;
        let mut log = &self.log;
        let mut bytes = Vec::new();
        let end = log.seek(SeekFrom::End(0)).unwrap_or_default();
        let _ = log.seek(SeekFrom::Start(end.saturating_sub(LENGTH)));
        let _ = log.read_to_end(&mut bytes);
        format!("--- the end of its log ---\n{}", String::from_utf8_lossy(&bytes))
    }

    /// Waits until the command has ended by itself.
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
    /// The server ended, or did not answer within `patience`; with the end of its log.
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
            // LocalStack stays up when its port is another's.
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

    /// Ends a server that its owner would have kept.
    fn end(mut self) {
        let pid = self.supervisor.id().to_string();
        let _ = Command::new("kill").arg(pid).status();
        self.wait();
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // Without standard input it runs until its owner ends.
        if self.supervisor.stdin.is_some() {
            // Closes standard input first, which is what ends the command.
            let _ = self.supervisor.wait();
        }
    }
}

/// Returns the endpoint of a server that all test processes of one `cargo test` share.
///
/// The first process that asks starts the server: `command` makes the command that serves on the port given to it, and
/// `answers` tells whether that port answers. The server ends when `cargo test` does. A test that is run without cargo,
/// by a debugger, has a server of its own.
///
/// # Panics
///
/// When the server cannot be started, with the end of its log.
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
    let lock = File::create(home.join("shared.lock")).expect("a lock");
    lock.lock().expect("the lock");
    // Gone with the server.
    let noted = scratch.join("port");
    if let Some(port) = fs::read_to_string(&noted).ok().and_then(|port| port.parse().ok())
        && TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
    {
        return format!("http://127.0.0.1:{port}");
    }
    let mut problem = String::new();
    // Another process may take the port first: that deserves another try.
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
    panic!("{name} cannot be started: it {problem}; {HINT}");
}

/// The process that shared servers live as long as, and a name that no other process ever had: the `cargo` that runs
/// the test, or the test itself.
fn owner() -> (u32, String) {
    let parent = parent_id();
    let is_cargo =
        fs::read_to_string(format!("/proc/{parent}/comm")).is_ok_and(|name| name.starts_with("cargo"));
    let owner = if is_cargo { parent } else { std::process::id() };
    // "pid (name) state …", where the name may hold anything; the start time is the 20th field after it.
    let stat = fs::read_to_string(format!("/proc/{owner}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let started = after_name.split_whitespace().nth(19).unwrap_or("0");
    (owner, format!("{owner}-{started}"))
}

/// Sends an HTTP request to a port of this machine, and returns the whole answer.
///
/// # Errors
///
/// Nothing listens there, or the answer does not come within `patience`.
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

/// A name that no test of this run or an earlier one has: the tests of all binaries share the servers.
pub fn unique(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
    format!("{name}-{process}-{count}-{now}")
}

/// A port free a moment ago, for servers that cannot choose one themselves. Free on all interfaces, as some
/// listen on all of them, whatever they are told.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// Tells the person, not the test harness, which captures what is printed by `eprintln!`.
pub fn tell(message: &str) {
    let _ = writeln!(io::stderr(), "{message}");
}
