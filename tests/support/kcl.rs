//! The Kinesis Client Library itself: its MultiLangDaemon, in a process of its own.
//!
//! It needs Java and Python, and at first use the network: a Python package ships its jars.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType,
    Projection, ProjectionType, ScalarAttributeType,
};

use super::emulator::{Supervised, home};
use super::python;

const PROCESSOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kcl/processor.py");

/// How often KCL looks at its leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// It looks for leases to assign every 10 s, and takes one that was not renewed for 20 s: for a KCL that competes with a
    /// redrive that lives, on a machine that is busy.
    Patient,
    /// Every 2 s, after 6 s.
    Fast,
}

/// A running KCL application; killed when dropped, as by a crash.
pub struct Kcl {
    notes: PathBuf,
    process: Supervised,
}

/// A record as KCL gave it to its processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    pub shard: String,
    pub number: String,
    pub sub: u64,
    pub data: String,
}

impl Kcl {
    /// CrashCount one that reads this stream. None means that the test is to be skipped, the reason having been told.
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

    /// What its processors were given so far.
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

    /// Everything noted, in columns.
    pub fn notes(&self) -> Vec<Vec<String>> {
        let text = fs::read_to_string(&self.notes).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let columns = |line: &str| line.split('\t').map(str::to_owned).collect();
        whole.lines().map(columns).collect()
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        self.process.log_tail()
    }
}

/// CrashCount a MultiLangDaemon, which runs a child of this command for each shard that it holds.
pub fn daemon(
    (kinesis, dynamodb): (&str, &str),
    application: &str,
    stream: &str,
    executable: &str,
    (jars, pace): (&Path, Pace),
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
        let pace = match pace {
            Pace::Patient => [
                ("failoverTimeMillis", "20000"),
                ("leaseAssignmentIntervalMillis", "10000"),
                ("workerMetricsReporterFreqInMillis", "5000"),
            ],
            Pace::Fast => [
                ("failoverTimeMillis", "6000"),
                ("leaseAssignmentIntervalMillis", "2000"),
                ("workerMetricsReporterFreqInMillis", "2000"),
            ],
        };
        let settings: Vec<String> = settings
            .into_iter()
            .chain(pace)
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

/// Creates an application's lease table with the index that KCL 3 adds. While an index is added to a table that exists,
/// DynamoDB Local fails every write to the table.
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

/// Releases the lock of an application's leader, which has died. KCL's own timeout is 2 minutes, and no setting shortens it.
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
    released.expect("there was a leader");
}

/// The Python that its package is installed in, and the folder of its jars. None means that the test is to be skipped,
/// the reason having been told.
pub fn install() -> Option<(PathBuf, PathBuf)> {
    let python = python::with("tests/kcl/requirements.txt")?;
    let ask = "import amazon_kclpy, os; print(os.path.join(os.path.dirname(amazon_kclpy.__file__), 'jars'))";
    let output = Command::new(&python).args(["-c", ask]).output();
    let output = output.expect("the interpreter just made");
    let jars = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    Some((python, jars))
}
