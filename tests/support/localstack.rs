//! LocalStack: the real protocol over a real socket.
//!
//! Requires `python3` (3.11 or later, with `venv`), `node` and `npm`. The first use also requires network
//! access: `tests/localstack/install.py` installs LocalStack below the target directory, for all later runs.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use super::emulator::{self, HINT, Supervised, free_port, home, is_skipped, request, tell};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/localstack");

/// A limit far above the start time on an idle machine, because tests run concurrently.
const START_TIMEOUT: Duration = Duration::from_secs(120);

const SETTINGS: &[(&str, &str)] = &[
    ("SERVICES", "cloudformation,cloudwatch,kinesis,s3,sns,sqs"),
    ("KINESIS_MOCK_PROVIDER_ENGINE", "node"),
    ("KINESIS_PERSISTENCE", "0"),
    // All tests of a run share one server.
    ("KINESIS_SHARD_LIMIT", "10000"),
    // Only the endpoint: no licence check, certificate download, telemetry or DNS server.
    ("ACTIVATE_PRO", "0"),
    ("SKIP_SSL_CERT_DOWNLOAD", "1"),
    ("DISABLE_EVENTS", "1"),
    ("DNS_ADDRESS", "0"),
    // FILESYSTEM_ROOT is used only outside a container, and LocalStack mistakes some machines for one.
    ("OVERRIDE_IN_DOCKER", "0"),
];

/// A running LocalStack, with Kinesis in us-east-1 for any credentials.
pub struct LocalStack {
    endpoint: String,
    /// `None` for a server that other tests also use.
    server: Option<Supervised>,
}

impl LocalStack {
    /// Returns the LocalStack that all tests share, or the server at `AWS_ENDPOINT_URL` if that is set.
    ///
    /// Returns `None` if the test is to be skipped, after printing the reason.
    ///
    /// # Panics
    ///
    /// Panics if LocalStack cannot be installed or does not start, and prints the end of its log.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<LocalStack>> = OnceLock::new();
        let start = || {
            if let Some(endpoint) = endpoint_of_user() {
                return Some(LocalStack {
                    endpoint,
                    server: None,
                });
            }
            if is_skipped() {
                return None;
            }
            let home = home("localstack");
            install(&home);
            let command = |scratch: &Path, port| command(&home, scratch, port, &[]);
            let endpoint = emulator::shared("localstack", START_TIMEOUT, command, answers);
            Some(LocalStack {
                endpoint,
                server: None,
            })
        };
        SHARED.get_or_init(start).as_ref()
    }

    /// Starts a LocalStack with these environment variables in addition to [`SETTINGS`]. Returns once Kinesis
    /// answers, or `None` if the test is to be skipped, after printing the reason.
    ///
    /// # Panics
    ///
    /// Panics if LocalStack cannot be installed or does not start, and prints the end of its log.
    pub fn start(env: &[(&str, &str)]) -> Option<Self> {
        if endpoint_of_user().is_some() {
            tell("skipped: the tests cannot configure the server at AWS_ENDPOINT_URL");
            return None;
        }
        if is_skipped() {
            return None;
        }
        let home = home("localstack");
        install(&home);
        let mut problem = String::new();
        // Another process may take the port first. In that case the start is retried.
        for _ in 0..3 {
            let port = free_port();
            let mut server = Supervised::spawn(&home, |scratch| command(&home, scratch, port, env));
            match server.wait_ready(START_TIMEOUT, || answers(port)) {
                Ok(()) => {
                    return Some(LocalStack {
                        endpoint: format!("http://127.0.0.1:{port}"),
                        server: Some(server),
                    });
                }
                Err(error) => problem = error,
            }
        }
        panic!("LocalStack {problem}; {HINT}");
    }

    pub fn endpoint(&self) -> &str {
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

/// Returns the endpoint of the user's own server, if one is set.
pub fn endpoint_of_user() -> Option<String> {
    std::env::var("AWS_ENDPOINT_URL")
        .ok()
        .filter(|url| !url.is_empty())
}

fn command(home: &Path, scratch: &Path, port: u16, env: &[(&str, &str)]) -> Command {
    symlink(home.join("root/usr"), scratch.join("usr")).expect("a link to the installed files");
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
}

fn install(home: &Path) {
    if !home.join("installed").exists() {
        tell("installing LocalStack into the target directory, which takes a minute or two (first use only)");
    }
    let mut installer = Supervised::spawn(home, |_| {
        let mut command = Command::new("python3");
        command.arg(Path::new(SCRIPTS).join("install.py")).arg(home);
        command
    });
    assert!(
        installer.wait().success(),
        "LocalStack cannot be installed; {HINT}\n{}",
        installer.log_tail()
    );
}

/// Returns whether LocalStack is up and its Kinesis answers. LocalStack starts Kinesis with the first
/// request.
fn answers(port: u16) -> bool {
    let health = request(port, START_TIMEOUT, "GET /_localstack/health", "", "").unwrap_or_default();
    let is_healthy = ["available", "running"]
        .iter()
        .any(|state| health.contains(&format!(r#""kinesis": "{state}""#)));
    let headers =
        "X-Amz-Target: Kinesis_20131202.ListStreams\r\nContent-Type: application/x-amz-json-1.1\r\n";
    is_healthy
        && request(port, START_TIMEOUT, "POST /", headers, "{}")
            .is_ok_and(|reply| reply.starts_with("HTTP/1.1 200"))
}
