//! `redrive rehydrate`: letters of what Lambda gave up.

use crate::address::{Address, StoreAddress, Stream};
use clap::Args;
use redrive::replay::{self, Rehydrate as Rehydration};
use redrive::{BoxError, Idempotency, idempotency};

use crate::Ended;
use crate::clients::Clients;
use crate::filter::Only;
use crate::replay::{How, Source, Target};

/// Make letters of the batches that Lambda gave up
///
/// Reads the messages that Lambda writes to the on-failure destination of a Kinesis event source mapping.
/// Such a message in a queue (or from a topic) names only where a batch was: its records are read from the stream again, as
/// long as the stream holds them. Those in a bucket have the records. A record that is gone is reported, one by one, and its
/// message stays.
///
/// Where the stream holds more records between a batch's first and last than the batch had, they cannot be told apart:
/// their letters are marked as suspect. With --idempotency those that are known as processed are left out.
#[derive(Debug, Args)]
pub(crate) struct Rehydrate {
    /// Where the messages are
    address: Address,
    /// Write the letters there
    #[arg(long, value_name = "ADDRESS", required_unless_present = "into")]
    to: Option<Address>,
    /// Put the records into this stream at once, by its name or ARN
    #[arg(long, value_name = "STREAM", conflicts_with = "to")]
    into: Option<Stream>,
    /// With --into: wrap each record in a KPL aggregate whose tags tell consumers of redrive where it comes from
    #[arg(long, requires = "into")]
    stamp: bool,
    /// Read records from this stream, by its name or ARN. A message without records that names another stream is left.
    /// Default: the stream of --into
    #[arg(long, value_name = "STREAM")]
    from_stream: Vec<Stream>,
    /// The application that the letters are of. Default: the function's name
    #[arg(long)]
    application: Option<String>,
    /// Where the function's idempotency keys are: redb:FILE or dynamodb:TABLE
    #[arg(long, value_name = "STORE")]
    idempotency: Option<StoreAddress>,
    /// The field of the payload that makes them, if one does: /order/id
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
                "the streams of --from-stream are in several regions; rehydrate each region by itself".into(),
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
            (None, None) => return Err("say where to: --to ADDRESS or --into STREAM".into()),
        };
        self.how.run(replay, from, target, &clients, json).await
    }
}
