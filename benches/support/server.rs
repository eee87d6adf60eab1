//! A server in a process of its own, which is this program once more: in the process that is measured it would set the
//! pace, and count.

use std::env;
use std::error::Error;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Says to this program that it is the server.
const SERVE: &str = "REDRIVE_BENCH_SERVE";

/// Whether this process is to be the server.
pub fn is_wanted() -> bool {
    env::var_os(SERVE).is_some()
}

/// The server's side, once it listens at this endpoint: runs until nobody holds the other end of its standard input.
pub async fn serve(endpoint: &str) -> Result<()> {
    println!("{endpoint}");
    tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new())).await??;
    Ok(())
}

/// The running server; it stops when dropped.
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
