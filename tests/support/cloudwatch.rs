//! CloudWatch on LocalStack: today's SDK speaks a protocol that this LocalStack does not know.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::emulator::{Supervised, free_port, home};
use super::localstack::LocalStack;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/localstack/cloudwatch.py");
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// What translates; it ends when dropped.
pub(crate) struct CloudWatchLocal {
    endpoint: String,
    /// None for a server that was there before, which speaks what it speaks.
    _translator: Option<Supervised>,
}

impl CloudWatchLocal {
    pub(crate) fn of(localstack: &LocalStack) -> Self {
        let python = home("localstack").join("venv/bin/python");
        if !localstack.is_own() {
            return CloudWatchLocal {
                endpoint: localstack.endpoint().to_owned(),
                _translator: None,
            };
        }
        let port = free_port();
        let mut translator = Supervised::spawn(&home("localstack"), |_| {
            let mut command = Command::new(&python);
            command
                .arg(Path::new(SCRIPT))
                .arg(port.to_string())
                .arg(localstack.endpoint());
            command
        });
        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let failed = translator.ended().is_some() || Instant::now() > deadline;
            assert!(
                !failed,
                "the translator does not come up\n{}",
                translator.log_tail()
            );
            sleep(Duration::from_millis(20));
        }
        CloudWatchLocal {
            endpoint: format!("http://127.0.0.1:{port}"),
            _translator: Some(translator),
        }
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }
}
