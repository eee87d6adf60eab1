//! The real Kinesis Client Library: its MultiLangDaemon, in a separate process.
//!
//! Requires Java and Python. The first use also requires network access, because KCL's jars come in a Python
//! package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType,
    Projection, ProjectionType, ScalarAttributeType,
};

use super::emulator::{Supervised, home};
use super::python;

const PROCESSOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kcl/processor.py");

/// The speed at which KCL assigns and fails over leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Assigns leases every 10 s, with a failover time of 20 s. Suits a KCL that competes with a running
    /// redrive worker on a busy machine.
    Patient,
    /// Assigns leases every 2 s, with a failover time of 6 s.
    Fast,
    /// Assigns leases every 4 s, with a failover time of [`FLEET_FAILOVER`]. A worker counts as alive for 40 s
    /// after each report, because redrive reports every 30 s.
    Fleet,
}

/// The failover time of [`Pace::Fleet`], which is KCL's default. It is long enough for a busy machine to renew its
/// leases in time.
pub const FLEET_FAILOVER: Duration = Duration::from_secs(10);

/// The behaviour of a worker in a mixed fleet.
#[derive(Debug, Clone, Copy)]
pub enum Role {
    /// Balances the shards in every run in which it leads.
    Balances,
    /// Balances the shards once, when it becomes the leader.
    BalancesOnce,
    /// Takes shards for itself, as KCL 2 does, and obeys no leader.
    Takes,
}

impl Pace {
    fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Pace::Patient => &[
                ("failoverTimeMillis", "20000"),
                ("leaseAssignmentIntervalMillis", "10000"),
                ("workerMetricsReporterFreqInMillis", "5000"),
            ],
            Pace::Fast => &[
                ("failoverTimeMillis", "6000"),
                ("leaseAssignmentIntervalMillis", "2000"),
                ("workerMetricsReporterFreqInMillis", "2000"),
            ],
            Pace::Fleet => &[
                ("failoverTimeMillis", "10000"),
                ("leaseAssignmentIntervalMillis", "4000"),
                ("workerMetricsReporterFreqInMillis", "20000"),
                ("shutdownGraceMillis", "20000"),
            ],
        }
    }
}

/// A running KCL application. Dropping this value kills the process, as a crash would.
pub struct Kcl {
    notes: PathBuf,
    process: Supervised,
}

/// A record as KCL passed it to its processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    pub shard: String,
    pub number: String,
    pub sub: u64,
    pub data: String,
}

impl Kcl {
    /// Starts an application that reads this stream. Returns `None` if the test is to be skipped, after
    /// printing the reason.
    pub fn start(
        (kinesis, dynamodb): (&str, &str),
        application: &str,
        stream: &str,
        pace: Pace,
    ) -> Option<Self> {
        let home = home("kcl");
        let (python, jars) = install()?;
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!(
            "notes-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let notes = home.join(unique);
        let _ = fs::remove_file(&notes);
        let executable = format!("{} {PROCESSOR} {}", python.display(), notes.display());
        let process = daemon(
            (kinesis, dynamodb),
            application,
            stream,
            &executable,
            (&jars, pace),
        );
        Some(Kcl { notes, process })
    }

    /// Starts a worker of a mixed fleet, with this name and this role. Its processors write into the journal,
    /// after the worker's name. Returns `None` if the test is to be skipped, after printing the reason.
    pub fn join(
        places: (&str, &str),
        application: &str,
        stream: &str,
        (worker, role): (&str, Role),
        journal: &Path,
    ) -> Option<Self> {
        let (python, jars) = install()?;
        let executable = format!("{} {PROCESSOR} {} {worker}", python.display(), journal.display());
        let role = match role {
            Role::Balances => ("varianceBalancingFrequency", "1"),
            Role::BalancesOnce => ("varianceBalancingFrequency", "1000"),
            Role::Takes => ("clientVersionConfig", "CLIENT_VERSION_CONFIG_COMPATIBLE_WITH_2X"),
        };
        let more = [("workerId", worker), role];
        let process = spawn(
            places,
            application,
            stream,
            &executable,
            (&jars, Pace::Fleet, &more),
        );
        Some(Kcl {
            notes: journal.to_owned(),
            process,
        })
    }

    /// Stops the daemon in an orderly way, and waits for its end.
    pub fn stop(mut self) {
        self.process.terminate();
        self.process.wait();
    }

    /// Returns the records that KCL has passed to its processors so far.
    pub fn given(&self) -> Vec<Given> {
        let given = |line: &Vec<String>| match &line[..] {
            [what, shard, number, sub, data] if what == "record" => Some(Given {
                shard: shard.clone(),
                number: number.clone(),
                sub: sub.parse().expect("a number"),
                data: data.clone(),
            }),
            _ => None,
        };
        self.notes().iter().filter_map(given).collect()
    }

    /// Returns all lines that the processors wrote, split into columns.
    pub fn notes(&self) -> Vec<Vec<String>> {
        let text = fs::read_to_string(&self.notes).unwrap_or_default();
        // The last line may be incomplete.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let columns = |line: &str| line.split('\t').map(str::to_owned).collect();
        whole.lines().map(columns).collect()
    }

    /// Returns the daemon's whole log.
    pub fn whole_log(&self) -> String {
        self.process.log()
    }

    /// Returns the end of the daemon's log.
    pub fn log(&self) -> String {
        self.process.log_tail()
    }
}

/// Starts a MultiLangDaemon, which runs one child of this command for each leased shard.
pub fn daemon(
    kinesis_and_dynamodb: (&str, &str),
    application: &str,
    stream: &str,
    executable: &str,
    (jars, pace): (&Path, Pace),
) -> Supervised {
    spawn(
        kinesis_and_dynamodb,
        application,
        stream,
        executable,
        (jars, pace, &[]),
    )
}

fn spawn(
    (kinesis, dynamodb): (&str, &str),
    application: &str,
    stream: &str,
    executable: &str,
    (jars, pace, more): (&Path, Pace, &[(&str, &str)]),
) -> Supervised {
    Supervised::spawn(&home("kcl"), |scratch| {
        let settings = [
            ("executableName", executable),
            ("streamName", stream),
            ("applicationName", application),
            ("AwsCredentialsProvider", "DefaultCredentialsProvider"),
            ("regionName", "us-east-1"),
            ("initialPositionInStream", "TRIM_HORIZON"),
            ("kinesisEndpoint", kinesis),
            ("dynamoDBEndpoint", dynamodb),
            ("metricsLevel", "NONE"),
            ("retrievalMode", "POLLING"),
            ("idleTimeBetweenReadsInMillis", "200"),
            ("shardSyncIntervalMillis", "2000"),
            ("parentShardPollIntervalMillis", "1000"),
            ("callProcessRecordsEvenForEmptyRecordList", "true"),
        ];
        let settings: Vec<String> = settings
            .into_iter()
            .chain(pace.settings().iter().copied())
            .chain(more.iter().copied())
            .map(|(name, value)| format!("{name} = {value}\n"))
            .collect();
        let properties = scratch.join("kcl.properties");
        fs::write(&properties, settings.concat()).expect("a file in the scratch directory");
        let mut java = Command::new("java");
        java.arg("-Xmx512m")
            .arg("-cp")
            .arg(format!("{}/*", jars.display()));
        java.arg("software.amazon.kinesis.multilang.MultiLangDaemon");
        java.arg("--properties-file").arg(properties);
        java.env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test");
        java
    })
}

/// Creates an application's lease table, including the index that KCL 3 adds.
///
/// DynamoDB Local fails every write to a table while an index is added to it.
pub async fn create_lease_table(dynamodb: &Client, application: &str) {
    let attribute = |name: &str| {
        let attribute = AttributeDefinition::builder().attribute_name(name);
        attribute
            .attribute_type(ScalarAttributeType::S)
            .build()
            .expect("complete")
    };
    let key = |name: &str, kind: KeyType| {
        let key = KeySchemaElement::builder().attribute_name(name);
        key.key_type(kind).build().expect("complete")
    };
    let keys_only = Projection::builder().projection_type(ProjectionType::KeysOnly);
    let index = GlobalSecondaryIndex::builder()
        .index_name("LeaseOwnerToLeaseKeyIndex")
        .key_schema(key("leaseOwner", KeyType::Hash))
        .key_schema(key("leaseKey", KeyType::Range))
        .projection(keys_only.build());
    let call = dynamodb.create_table().table_name(application);
    let call = call
        .billing_mode(BillingMode::PayPerRequest)
        .attribute_definitions(attribute("leaseKey"))
        .attribute_definitions(attribute("leaseOwner"))
        .key_schema(key("leaseKey", KeyType::Hash))
        .global_secondary_indexes(index.build().expect("complete"));
    call.send().await.expect("CreateTable");
}

/// Releases the lock of an application's dead leader. KCL's own timeout is 2 minutes, and no setting shortens
/// it.
pub async fn release_leader(dynamodb: &Client, application: &str) {
    let call = dynamodb
        .update_item()
        .table_name(format!("{application}-CoordinatorState"));
    let call = call.key("key", AttributeValue::S("Leader".to_owned()));
    let call = call.update_expression("SET isReleased = :one");
    let call = call.expression_attribute_values(":one", AttributeValue::S("1".to_owned()));
    let released = call
        .condition_expression("attribute_exists(ownerName)")
        .send()
        .await;
    released.expect("the application has a leader");
}

/// Returns the Python interpreter with KCL's package, and the folder of its jars. Returns `None` if the test
/// is to be skipped, after printing the reason.
pub fn install() -> Option<(PathBuf, PathBuf)> {
    let python = python::with("tests/kcl/requirements.txt")?;
    let ask = "import amazon_kclpy, os; print(os.path.join(os.path.dirname(amazon_kclpy.__file__), 'jars'))";
    let output = Command::new(&python).args(["-c", ask]).output();
    let output = output.expect("the installed interpreter runs");
    let jars = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    Some((python, jars))
}
