//! `redrive rehydrate`: makes dead letters of the batches that Lambda gave up.

use crate::address::{Address, StoreAddress, region_of_stream};
use clap::Args;
use redrive::BoxError;
use redrive::StreamId;
use redrive::replay::{self, Rehydrate as Rehydration};

use crate::Ended;
use crate::clients::Clients;
use crate::filter::Only;
use crate::replay::{How, Source, To};

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
    #[command(flatten)]
    to: To,
    /// Read records from this stream, given by name or ARN. A message that contains no records and names
    /// another stream is left in place. Default: the stream of --to-stream
    #[arg(long, value_name = "NAME|ARN", value_parser = str::parse::<StreamId>)]
    from_stream: Vec<StreamId>,
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
            true => self.to.stream().into_iter().cloned().collect(),
            false => self.from_stream,
        };
        let region = streams.first().and_then(region_of_stream);
        if streams.iter().any(|stream| region_of_stream(stream) != region) {
            return Err(
                "the streams of --from-stream are in several regions; run the command once for each region"
                    .into(),
            );
        }
        let mut rehydration = Rehydration::new(clients.kinesis_in(region).await);
        for stream in &streams {
            rehydration = rehydration.stream(stream.clone());
        }
        if let Some(application) = self.application {
            rehydration = rehydration.application(application);
        }
        let mut replay = replay::Replay::new(source)
            .rehydrated(rehydration)
            .filter(self.only.filter());
        if let Some(store) = self.idempotency {
            let mut known = clients.idempotency(&store).await?;
            if let Some(pointer) = self.idempotency_field {
                known = known.json_field(pointer);
            }
            replay = replay.without_completed(known);
        }
        let target = self.to.target()?;
        self.how.run(replay, from, target, &clients, json).await
    }
}
