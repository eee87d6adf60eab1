//! The DynamoDB server that holds the leases.

use std::env;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Credentials, Region};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

const ADDRESS: &str = "AWS_ENDPOINT_URL_DYNAMODB";
const HELP: &str = "no DynamoDB server. Run one with Docker:

    docker run --rm -p 8000:8000 amazon/dynamodb-local

or with npm and Java:

    npm pack amplify-dynamodb-simulator@2.9.30
    tar -xzf amplify-dynamodb-simulator-2.9.30.tgz
    cd package/emulator
    java -Djava.library.path=DynamoDBLocal_lib -jar DynamoDBLocal.jar -inMemory -sharedDb -port 8000

Then run the example with its address:

    AWS_ENDPOINT_URL_DYNAMODB=http://localhost:8000 cargo run -p fleet
";

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A DynamoDB server. Dropping it stops the server if the example has started it.
pub(crate) struct Server {
    client: Client,
    _local: Option<Child>,
}

impl Server {
    /// Connects to the server whose address is in the environment, or starts DynamoDB Local.
    pub(crate) async fn connect() -> anyhow::Result<Self> {
        if let Ok(address) = env::var(ADDRESS) {
            let client = client(&address);
            let tables = client.list_tables().send().await;
            tables
                .with_context(|| format!("DynamoDB does not answer at {address}, the value of {ADDRESS}"))?;
            return Ok(Server { client, _local: None });
        }
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let folder = installed()?.context(HELP)?;
        let mut local = java(&folder, port).spawn().context(HELP)?;
        let client = client(&format!("http://127.0.0.1:{port}"));
        let start = Instant::now();
        while let Err(error) = client.list_tables().send().await {
            if let Some(status) = local.try_wait()? {
                bail!("DynamoDB Local in {} ended: {status}", folder.display());
            }
            ensure!(
                start.elapsed() < START_TIMEOUT,
                "DynamoDB Local does not answer: {error}"
            );
            sleep(Duration::from_millis(100)).await;
        }
        Ok(Server {
            client,
            _local: Some(local),
        })
    }

    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }
}

/// Returns the folder in which the tests of this repository have installed DynamoDB Local.
fn installed() -> anyhow::Result<Option<PathBuf>> {
    // Cargo runs the example from `target/<profile>`.
    let program = env::current_exe()?;
    let target = program.ancestors().nth(2).unwrap_or(&program);
    let folder = target.join("emulators/dynamodb/package/emulator");
    Ok(folder.join("DynamoDBLocal.jar").exists().then_some(folder))
}

fn java(folder: &Path, port: u16) -> Command {
    let mut java = Command::new("java");
    java.current_dir(folder)
        .args([
            "-Djava.library.path=DynamoDBLocal_lib",
            "-jar",
            "DynamoDBLocal.jar",
        ])
        .args(["-inMemory", "-sharedDb", "-port", &port.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    java
}

/// Creates a client for a server that takes plain HTTP and any credentials.
fn client(address: &str) -> Client {
    Client::from_conf(
        Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "static"))
            .endpoint_url(address)
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .build(),
    )
}
