//! `redrive rehydrate`: makes dead letters of the batches that Lambda gave up.

use crate::address::{Address, StoreAddress, Stream};
use clap::Args;
use redrive::replay::{self, Rehydrate as Rehydration};
use redrive::{BoxError, Idempotency, idempotency};

use crate::Ended;
use crate::clients::Clients;
use crate::filter::Only;
use crate::replay::{How, Source, Target};

/// Make dead letters of the batches that Lambda gave up
///
/// Reads the messages that Lambda writes to the on-failure destination of a Kinesis event source mapping.
/// A message in an SQS queue, also one from an SNS topic, states only the range of the batch. The records of
/// the range are read again from the stream, if the stream still has them. A message in an S3 bucket contains
/// the records. Each record that is gone is reported, and its message stays.
///
/// If the range has more records than the batch had, the records of the batch cannot be identified. All dead
/// letters of the range are then marked as suspect. With --idempotency, those whose records are already
/// processed are left out.
#[derive(Debug, Args)]
pub(crate) struct Rehydrate {
    /// Address of the on-failure messages
    address: Address,
    /// Write the dead letters to this address
    #[arg(long, value_name = "ADDRESS", required_unless_present = "into")]
    to: Option<Address>,
    /// Put the records directly into this stream, given by name or ARN
    #[arg(long, value_name = "STREAM", conflicts_with = "to")]
    into: Option<Stream>,
    /// With --into: wrap each record in a KPL aggregate whose tags tell redrive consumers where the record
    /// comes from
    #[arg(long, requires = "into")]
    stamp: bool,
    /// Read records from this stream, given by name or ARN. A message that contains no records and names
    /// another stream is left in place. Default: the stream of --into
    #[arg(long, value_name = "STREAM")]
    from_stream: Vec<Stream>,
    /// Application name to write into the dead letters. Default: the name of the Lambda function
    #[arg(long)]
    application: Option<String>,
    /// Idempotency store of the function: redb:FILE or dynamodb:TABLE
    #[arg(long, value_name = "STORE")]
    idempotency: Option<StoreAddress>,
    /// Payload field that the function uses as the idempotency key, for example /order/id
    #[arg(long, value_name = "JSON_POINTER", requires = "idempotency")]
    idempotency_field: Option<String>,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    only: Only,
}

impl Rehydrate {
    pub(crate) async fn run(self, json: bool) -> Result<Ended, BoxError> {
        let clients = Clients::default();
        let source = clients.source(&self.address).await?;
        let from = Source::new(&self.address, &*source);
        let streams = match self.from_stream.is_empty() {
            true => self.into.iter().cloned().collect(),
            false => self.from_stream,
        };
        let region = streams.first().and_then(Stream::region);
        if streams.iter().any(|stream| stream.region() != region) {
            return Err(
                "the streams of --from-stream are in several regions; run the command once for each region"
                    .into(),
            );
        }
        let mut rehydration = Rehydration::new(clients.kinesis_in(region).await);
        for stream in &streams {
            rehydration = rehydration.stream(stream.as_str());
        }
        if let Some(application) = self.application {
            rehydration = rehydration.application(application);
        }
        let mut replay = replay::Replay::new(source)
            .rehydrated(rehydration)
            .filter(self.only.filter());
        if let Some(store) = self.idempotency {
            let mut known = match store {
                StoreAddress::Redb(path) => Idempotency::new(idempotency::Redb::open(path)?),
                StoreAddress::DynamoDb(table) => {
                    Idempotency::new(idempotency::DynamoDb::new(clients.dynamodb(&table).await, table))
                }
            };
            if let Some(pointer) = self.idempotency_field {
                known = known.json_field(pointer);
            }
            replay = replay.without_completed(known);
        }
        let target = match (self.into, self.to) {
            (Some(name), _) => Target::Stream {
                name,
                stamp: self.stamp,
            },
            (None, Some(to)) => Target::Sink(to),
            (None, None) => return Err("no target; use --to ADDRESS or --into STREAM".into()),
        };
        self.how.run(replay, from, target, &clients, json).await
    }
}
