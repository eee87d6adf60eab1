//! Turns addresses into AWS clients, sources, sinks and stores.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::address::{Address, StoreAddress, region_of_arn, region_of_queue, region_of_stream};
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_dynamodb::error::ProvideErrorMetadata as _;
use redrive::checkpoint::{self, CheckpointError, CheckpointStore};
use redrive::dead_letter::{self, DeadLetterSink};
use redrive::replay::{DeadLetterSource, Ledger, ledger, source};
use redrive::{BoxError, Idempotency, StreamId, idempotency};
use tokio::sync::OnceCell;

/// The AWS configuration from the environment and the profile, loaded once and only if AWS is used.
#[derive(Debug, Default)]
pub(crate) struct Clients(OnceCell<SdkConfig>);

impl Clients {
    async fn config(&self) -> &SdkConfig {
        let load = || aws_config::load_defaults(BehaviorVersion::latest());
        self.0.get_or_init(load).await
    }

    /// Returns the configuration, with this region instead of the default one if `region` is set.
    async fn config_in(&self, region: Option<&str>) -> SdkConfig {
        let config = self.config().await.to_builder();
        match region {
            Some(region) => config.region(Region::new(region.to_owned())).build(),
            None => config.build(),
        }
    }

    /// Creates a client in the region of the stream's ARN, or in the default region.
    pub(crate) async fn kinesis(&self, stream: &StreamId) -> aws_sdk_kinesis::Client {
        self.kinesis_in(region_of_stream(stream)).await
    }

    pub(crate) async fn kinesis_in(&self, region: Option<&str>) -> aws_sdk_kinesis::Client {
        aws_sdk_kinesis::Client::new(&self.config_in(region).await)
    }

    /// Creates a client in the region of the table's ARN, or in the default region.
    pub(crate) async fn dynamodb(&self, table: &str) -> aws_sdk_dynamodb::Client {
        aws_sdk_dynamodb::Client::new(&self.config_in(region_of_arn(table)).await)
    }

    pub(crate) async fn s3(&self) -> aws_sdk_s3::Client {
        let config = aws_sdk_s3::config::Builder::from(self.config().await);
        // Services other than AWS seldom resolve a bucket's name as part of the host name.
        let elsewhere = ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"].map(std::env::var_os);
        let elsewhere = elsewhere.iter().any(Option::is_some);
        aws_sdk_s3::Client::from_conf(config.force_path_style(elsewhere).build())
    }

    /// Creates a client for the queue and returns the queue's URL, looked up if `queue` is a name.
    async fn sqs(&self, queue: &str) -> Result<(aws_sdk_sqs::Client, String), BoxError> {
        let client = aws_sdk_sqs::Client::new(&self.config_in(region_of_queue(queue)).await);
        if queue.contains("://") {
            return Ok((client, queue.to_owned()));
        }
        let answer = client.get_queue_url().queue_name(queue).send().await;
        let answer = answer.map_err(|error| Unreachable {
            what: format!("queue {queue:?}"),
            source: error.into(),
        })?;
        let url = answer
            .queue_url
            .ok_or_else(|| format!("queue {queue:?} has no URL"))?;
        Ok((client, url))
    }

    pub(crate) async fn source(&self, address: &Address) -> Result<Box<dyn DeadLetterSource>, BoxError> {
        Ok(match address {
            Address::File(path) => Box::new(source::File::new(path)),
            Address::Kinesis(stream) => {
                Box::new(source::Kinesis::new(self.kinesis(stream).await, stream.clone()))
            }
            Address::Sqs(queue) => {
                let (client, url) = self.sqs(queue).await?;
                Box::new(source::Sqs::new(client, url))
            }
            Address::S3 { bucket, prefix } => {
                Box::new(source::S3::new(self.s3().await, bucket).prefix(prefix))
            }
            address => {
                return Err(format!(
                    "{address} stores no dead letters; read a queue that is subscribed to the topic"
                )
                .into());
            }
        })
    }

    pub(crate) async fn sink(&self, address: &Address) -> Result<Arc<dyn DeadLetterSink>, BoxError> {
        Ok(match address {
            Address::File(path) => Arc::new(dead_letter::File::open(path)?),
            Address::Kinesis(stream) => Arc::new(dead_letter::Kinesis::new(
                self.kinesis(stream).await,
                stream.clone(),
            )),
            Address::Sqs(queue) => {
                let (client, url) = self.sqs(queue).await?;
                Arc::new(dead_letter::Sqs::new(client, url))
            }
            Address::Sns(topic) => {
                let client = aws_sdk_sns::Client::new(&self.config_in(region_of_arn(topic)).await);
                Arc::new(dead_letter::Sns::new(client, topic))
            }
            Address::S3 { bucket, prefix } => {
                Arc::new(dead_letter::S3::new(self.s3().await, bucket).prefix(prefix))
            }
        })
    }

    /// Opens the ledger at this address, or the user's default ledger.
    pub(crate) async fn ledger(&self, address: Option<&StoreAddress>) -> Result<Arc<dyn Ledger>, BoxError> {
        Ok(match address {
            Some(StoreAddress::DynamoDb(table)) => {
                Arc::new(ledger::DynamoDb::new(self.dynamodb(table).await, table.as_str()))
            }
            Some(StoreAddress::Redb(path)) => Arc::new(ledger::Redb::open(path)?),
            None => {
                let path = own_ledger()?;
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder)?;
                }
                Arc::new(ledger::Redb::open(path)?)
            }
        })
    }

    /// Opens the idempotency store at this address. A store that does not exist is an error: an empty one
    /// would report each record as not processed.
    pub(crate) async fn idempotency(&self, address: &StoreAddress) -> Result<Idempotency, BoxError> {
        Ok(match address {
            StoreAddress::Redb(path) => {
                existing_file(address, path)?;
                Idempotency::new(idempotency::Redb::open(path)?)
            }
            StoreAddress::DynamoDb(table) => {
                let client = self.existing_table(address, table).await?;
                Idempotency::new(idempotency::DynamoDb::new(client, table.as_str()))
            }
        })
    }

    /// Creates a client for a table. A missing table is an error. If the role may not describe the table, the
    /// store does not create it either.
    async fn existing_table(
        &self,
        address: &StoreAddress,
        table: &str,
    ) -> Result<aws_sdk_dynamodb::Client, BoxError> {
        let client = self.dynamodb(table).await;
        match client.describe_table().table_name(table).send().await {
            Err(error) if error.code() != Some("AccessDeniedException") => Err(Unreachable {
                what: address.to_string(),
                source: error.into(),
            }
            .into()),
            _ => Ok(client),
        }
    }

    /// Opens the checkpoint store at this address. A store that does not exist is an error: opening must not
    /// create one for a mistyped address.
    pub(crate) async fn checkpoints(
        &self,
        address: &StoreAddress,
        failover_time: Duration,
    ) -> Result<Arc<dyn CheckpointStore>, BoxError> {
        Ok(match address {
            StoreAddress::Redb(path) => {
                existing_file(address, path)?;
                Arc::new(checkpoint::Redb::open(path).map_err(|error| {
                    match error {
                        CheckpointError::InUse { .. } => InUse {
                            file: address.to_string(),
                        }
                        .into(),
                        error => BoxError::from(error),
                    }
                })?)
            }
            StoreAddress::DynamoDb(table) => {
                let client = self.existing_table(address, table).await?;
                Arc::new(checkpoint::DynamoDb::new(client, table.as_str()).failover_time(failover_time))
            }
        })
    }
}

fn existing_file(address: &StoreAddress, path: &Path) -> Result<(), BoxError> {
    match path.try_exists()? {
        true => Ok(()),
        false => Err(format!("{address} does not exist; check the path").into()),
    }
}

/// Returns the default ledger's path: `$XDG_STATE_HOME/redrive/replay.redb` (XDG Base Directory
/// Specification).
pub(crate) fn own_ledger() -> Result<PathBuf, BoxError> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let state = match (set("XDG_STATE_HOME"), set("HOME")) {
        (Some(state), _) => PathBuf::from(state),
        (None, Some(home)) => Path::new(&home).join(".local/state"),
        (None, None) => {
            return Err("cannot locate the default ledger: HOME and XDG_STATE_HOME are not set; use --ledger redb:FILE".into());
        }
    };
    Ok(state.join("redrive/replay.redb"))
}

#[derive(Debug, thiserror::Error)]
#[error("{what} cannot be reached; check its name, the region and the account")]
struct Unreachable {
    what: String,
    #[source]
    source: BoxError,
}

#[derive(Debug, thiserror::Error)]
#[error("{file} is open in another process; stop the consumer first (force does not apply to a file)")]
struct InUse {
    file: String,
}
