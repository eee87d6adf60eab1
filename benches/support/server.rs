//! Runs a server in a second process of the same program. In the measured process, the server would set the
//! pace and its CPU time would count.

use std::env;
use std::error::Error;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The environment variable that makes this program the server.
const SERVE: &str = "REDRIVE_BENCH_SERVE";

/// Returns true if this process must be the server.
pub fn is_wanted() -> bool {
    env::var_os(SERVE).is_some()
}

/// Reports the server's endpoint on standard output, and waits until the parent closes standard input.
pub async fn serve(endpoint: &str) -> Result<()> {
    println!("{endpoint}");
    tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new())).await??;
    Ok(())
}

/// A running server, which stops when dropped.
pub struct Server {
    child: Child,
    pub endpoint: String,
}

impl Server {
    pub fn start() -> Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .env(SERVE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut endpoint = String::new();
        let stdout = child.stdout.take().ok_or("the server has no output")?;
        BufReader::new(stdout).read_line(&mut endpoint)?;
        Ok(Server {
            child,
            endpoint: endpoint.trim().to_owned(),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
