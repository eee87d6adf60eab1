//! Registers the consumer that Kinesis pushes records to (enhanced fan-out).

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::ProvideErrorMetadata;
use aws_sdk_kinesis::types::ConsumerStatus;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::retrieval::FanOutConsumer;
use crate::aws::stream_summary;
use crate::failure::BoxError;
use crate::record::StreamId;

/// Interval and time limit of the checks whether a new consumer is active.
const CREATING: Duration = Duration::from_millis(500);
const CREATED_WITHIN: Duration = Duration::from_secs(60);
/// The time for which a failure counts for all shards: one shard asks, and the others get its error.
const FAILED_FOR: Duration = Duration::from_secs(30);

/// The registration that all shards share.
#[derive(Debug)]
pub(in crate::consumer) struct Registration {
    stream: StreamId,
    consumer: FanOutConsumer,
    application: Arc<str>,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Unknown,
    Known(Arc<str>),
    Failed(Instant, Arc<dyn std::error::Error + Send + Sync>),
}

impl Registration {
    pub(in crate::consumer) fn new(
        stream: StreamId,
        consumer: FanOutConsumer,
        application: Arc<str>,
    ) -> Self {
        Registration {
            stream,
            consumer,
            application,
            state: Mutex::new(State::Unknown),
        }
    }

    /// Returns the consumer's ARN. Registers a consumer that is configured by name if there is none, and
    /// waits until it is active.
    pub(in crate::consumer) async fn arn(&self, client: &Client) -> Result<Arc<str>, BoxError> {
        let mut state = self.state.lock().await;
        match &*state {
            State::Known(arn) => return Ok(arn.clone()),
            State::Failed(at, error) if at.elapsed() < FAILED_FOR => return Err(error.clone().into()),
            _ => {}
        }
        let found = match &self.consumer {
            FanOutConsumer::Arn(arn) => Ok(arn.as_str().into()),
            FanOutConsumer::Name(name) => self.register(client, name).await,
            FanOutConsumer::Application => self.register(client, &self.application).await,
        };
        match found {
            Ok(arn) => {
                *state = State::Known(Arc::clone(&arn));
                Ok(arn)
            }
            Err(error) => {
                let error: Arc<dyn std::error::Error + Send + Sync> = error.into();
                *state = State::Failed(Instant::now(), error.clone());
                Err(error.into())
            }
        }
    }

    /// Forgets the ARN of a consumer that does not exist any more.
    pub(in crate::consumer) fn forget(&self, arn: &str) {
        if let Ok(mut state) = self.state.try_lock()
            && matches!(&*state, State::Known(known) if **known == *arn)
        {
            *state = State::Unknown;
        }
    }

    async fn register(&self, client: &Client, name: &str) -> Result<Arc<str>, BoxError> {
        let stream = self.stream_arn(client).await?;
        let call = client.register_stream_consumer().stream_arn(&stream);
        if let Err(error) = call.consumer_name(name).send().await
            && error.code() != Some("ResourceInUseException")
        {
            return Err(error.into());
        }
        let start = Instant::now();
        loop {
            let call = client.describe_stream_consumer().stream_arn(&stream);
            let reply = call.consumer_name(name).send().await?;
            match reply.consumer_description {
                Some(found)
                    if found.consumer_status == ConsumerStatus::Active && !found.consumer_arn.is_empty() =>
                {
                    return Ok(found.consumer_arn.into());
                }
                _ if start.elapsed() > CREATED_WITHIN => {
                    let error = format!("consumer {name:?} of the stream is not active yet");
                    return Err(error.into());
                }
                _ => sleep(CREATING).await,
            }
        }
    }

    async fn stream_arn(&self, client: &Client) -> Result<String, BoxError> {
        if let Some(arn) = self.stream.arn() {
            return Ok(arn.to_owned());
        }
        let call = client.describe_stream_summary();
        let reply = call.stream_name(self.stream.name()).send().await?;
        Ok(stream_summary(reply)?.stream_arn)
    }
}
