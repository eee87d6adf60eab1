//! CloudWatch on LocalStack, behind a translator.
//!
//! The current AWS SDK uses a CloudWatch protocol that this LocalStack version does not support.

use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::emulator::{self, home};
use super::localstack::{LocalStack, endpoint_of_user};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/localstack/cloudwatch.py");
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Returns the endpoint of the translator in front of LocalStack, which all tests share.
///
/// A server from `AWS_ENDPOINT_URL` is used directly, without the translator.
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
