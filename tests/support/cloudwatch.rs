//! CloudWatch on LocalStack: today's SDK speaks a protocol that this LocalStack does not know.

use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::emulator::{self, home};
use super::localstack::{LocalStack, endpoint_of_user};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/localstack/cloudwatch.py");
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Returns the endpoint of a translator in front of LocalStack, which all tests share. A server of the user's own speaks
/// what it speaks.
pub fn endpoint(localstack: &LocalStack) -> String {
    if endpoint_of_user().is_some() {
        return localstack.endpoint().to_owned();
    }
    let command = |_: &Path, port: u16| {
        let mut command = Command::new(home("localstack").join("venv/bin/python"));
        command
            .arg(SCRIPT)
            .arg(port.to_string())
            .arg(localstack.endpoint());
        command
    };
    let answers = |port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
    emulator::shared("cloudwatch", START_TIMEOUT, command, answers)
}
