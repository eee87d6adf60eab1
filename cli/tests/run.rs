//! Runs the command with a folder for its state.

use std::process::{Command, Stdio};

use tempfile::TempDir;

/// The command, against a server.
pub(crate) struct Redrive {
    endpoint: String,
    pub(crate) folder: TempDir,
}

/// The exit code and the output of a run.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Redrive {
    pub(crate) fn at(endpoint: &str) -> Self {
        Redrive {
            endpoint: endpoint.to_owned(),
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    /// Returns the address of a file in the folder.
    pub(crate) fn file(&self, name: &str) -> String {
        format!("file:{}", self.folder.path().join(name).display())
    }

    /// Runs it without a terminal, in us-east-1.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        let output = Command::new(env!("CARGO_BIN_EXE_redrive"))
            .args(arguments)
            .env_clear()
            .env("AWS_ENDPOINT_URL", &self.endpoint)
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .env("XDG_STATE_HOME", self.folder.path())
            .stdin(Stdio::null())
            .output()
            .expect("it runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        Ended {
            code: output.status.code(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}
