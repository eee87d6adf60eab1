//! Runs a server in a second process. In the measured process, the server would set the pace and its CPU time
//! would count.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use rustix::param::clock_ticks_per_second;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Starts the bench's server, which answers as named: `kinesis` or `answers`.
#[macro_export]
macro_rules! start_server {
    ($answers:literal) => {
        // Cargo sets the variable only for the benches themselves.
        $crate::server::Server::start(env!("CARGO_BIN_EXE_bench_server"), $answers)
    };
}

/// A running server, which stops when dropped.
pub struct Server {
    child: Child,
    pub endpoint: String,
}

impl Server {
    /// Starts the program, and waits for its endpoint.
    pub fn start(program: &str, answers: &str) -> Result<Self> {
        let mut child = Command::new(program)
            .arg(answers)
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

    /// Returns the seconds of CPU time that the server has used. Only on Linux.
    pub fn cpu(&self) -> Result<f64> {
        // Of all threads, in ticks: user and system time are the fields 14 and 15.
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, after_name) = stat.rsplit_once(')').ok_or("no name")?;
        let times = after_name.split_whitespace().skip(11).take(2);
        let ticks: Vec<f64> = times.map(str::parse).collect::<std::result::Result<_, _>>()?;
        Ok(ticks.iter().sum::<f64>() / clock_ticks_per_second() as f64)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
