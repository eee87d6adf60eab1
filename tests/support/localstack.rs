//! A LocalStack of its own for a test, for the real protocol over a real socket.
//!
//! It needs `python3` (3.11 or later, with `venv`), `node` and `npm`, and at first use the network, for then
//! LocalStack is installed below the target directory, for all runs to come. `tests/localstack/install.py`
//! does that.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::emulator::{HINT, Supervised, free_port, home, is_skipped, tell};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/localstack");

/// Many times what a start takes on an idle machine, for tests run beside other tests.
const START_TIMEOUT: Duration = Duration::from_secs(120);

const POLL_INTERVAL: Duration = Duration::from_millis(50);

const SETTINGS: &[(&str, &str)] = &[
    ("SERVICES", "cloudformation,cloudwatch,kinesis,s3,sns,sqs"),
    ("KINESIS_MOCK_PROVIDER_ENGINE", "node"),
    ("KINESIS_PERSISTENCE", "0"),
    // Nothing but the endpoint: no licence check, certificate download, telemetry or DNS server.
    ("ACTIVATE_PRO", "0"),
    ("SKIP_SSL_CERT_DOWNLOAD", "1"),
    ("DISABLE_EVENTS", "1"),
    ("DNS_ADDRESS", "0"),
    // FILESYSTEM_ROOT counts only outside of a container, and LocalStack takes some machines for one.
    ("OVERRIDE_IN_DOCKER", "0"),
];

/// A running LocalStack, with Kinesis in us-east-1 for any credentials. Stopped when dropped, and when the
/// process ends in whichever way, so that it may also be kept in a `static`.
pub(crate) struct LocalStack {
    endpoint: String,
    /// None for a server that was there before.
    server: Option<Supervised>,
}

impl LocalStack {
    /// Starts one with these environment variables besides [`SETTINGS`], and returns once Kinesis answers.
    ///
    /// `AWS_ENDPOINT_URL`, where set, is used in its place, if `env` asks for nothing special. None means
    /// that the test is to be skipped, the reason having been told.
    ///
    /// # Panics
    ///
    /// When it cannot be installed or does not come up, with the end of its log.
    pub(crate) fn start(env: &[(&str, &str)]) -> Option<Self> {
        if let Some(endpoint) = std::env::var("AWS_ENDPOINT_URL")
            .ok()
            .filter(|url| !url.is_empty())
        {
            if !env.is_empty() {
                tell("skipped: the server at AWS_ENDPOINT_URL is not ours to configure");
                return None;
            }
            return Some(Self {
                endpoint,
                server: None,
            });
        }
        if is_skipped() {
            return None;
        }
        let home = home("localstack");
        install(&home);
        // Another process may take the port before LocalStack does: that deserves another try.
        let running = (0..3).find_map(|_| Self::run(&home, env));
        assert!(running.is_some(), "LocalStack finds each port taken; {HINT}");
        running
    }

    /// One of its own, or None if its port was taken by another.
    fn run(home: &Path, env: &[(&str, &str)]) -> Option<Self> {
        let port = free_port();
        let mut server = Supervised::spawn(home, |scratch| {
            symlink(home.join("root/usr"), scratch.join("usr")).expect("a link to what is installed");
            let mut command = Command::new(home.join("venv/bin/python"));
            command
                .args(["-P", "-m", "localstack.runtime.main"])
                .envs(SETTINGS.iter().copied())
                .env("GATEWAY_LISTEN", format!("127.0.0.1:{port}"))
                .env("FILESYSTEM_ROOT", scratch)
                .env("CONFIG_DIR", scratch)
                .env("XDG_CACHE_HOME", home.join("cache"))
                .envs(env.iter().copied());
            command
        });
        wait_ready(&mut server, port).then(|| Self {
            endpoint: format!("http://127.0.0.1:{port}"),
            server: Some(server),
        })
    }

    /// Whether it was started here.
    pub(crate) fn is_own(&self) -> bool {
        self.server.is_some()
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

impl Drop for LocalStack {
    fn drop(&mut self) {
        if let Some(server) = &self.server
            && thread::panicking()
        {
            eprintln!("{}", server.log_tail());
        }
    }
}

fn install(home: &Path) {
    if !home.join("installed").exists() {
        tell("installing LocalStack below the target directory, which takes a minute or two, once");
    }
    let mut installer = Supervised::spawn(home, |_| {
        let mut command = Command::new("python3");
        command.arg(Path::new(SCRIPTS).join("install.py")).arg(home);
        command
    });
    let status = loop {
        match installer.ended() {
            Some(status) => break status,
            None => thread::sleep(POLL_INTERVAL),
        }
    };
    assert!(
        status.success(),
        "LocalStack cannot be installed; {HINT}\n{}",
        installer.log_tail()
    );
}

/// Waits until LocalStack is up and its Kinesis, which it starts with the first request, answers. False if
/// the port is another's, in which case LocalStack stays up without listening.
fn wait_ready(server: &mut Supervised, port: u16) -> bool {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if server.log_tail().contains("CannotListenError") {
            return false;
        }
        if is_healthy(port, deadline) && kinesis_answers(port, deadline) {
            return true;
        }
        let ended = server.ended().is_some();
        if ended || Instant::now() > deadline {
            let problem = if ended {
                "ended while starting"
            } else {
                "does not come up"
            };
            panic!("LocalStack {problem}; {HINT}\n{}", server.log_tail());
        }
        thread::sleep(POLL_INTERVAL);
    }
}

fn is_healthy(port: u16, deadline: Instant) -> bool {
    let health = request(port, deadline, "GET /_localstack/health", "", "").unwrap_or_default();
    ["available", "running"]
        .iter()
        .any(|state| health.contains(&format!(r#""kinesis": "{state}""#)))
}

fn kinesis_answers(port: u16, deadline: Instant) -> bool {
    let headers =
        "X-Amz-Target: Kinesis_20131202.ListStreams\r\nContent-Type: application/x-amz-json-1.1\r\n";
    request(port, deadline, "POST /", headers, "{}").is_ok_and(|reply| reply.starts_with("HTTP/1.1 200"))
}

fn request(port: u16, deadline: Instant, what: &str, headers: &str, body: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    let left = deadline.saturating_duration_since(Instant::now());
    stream.set_read_timeout(Some(left.max(POLL_INTERVAL)))?;
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
