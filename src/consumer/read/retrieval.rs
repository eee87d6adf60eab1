//! The ways to read a stream.

/// The way in which a [`Consumer`](crate::consumer::Consumer) reads its shards.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Retrieval {
    /// Polling with GetRecords. A busy shard is read as often as allowed, an idle shard once a second by
    /// default. All readers of a shard share 2 MB and 5 calls a second.
    #[default]
    Polling,
    /// Enhanced fan-out: Kinesis pushes records, with 2 MB a second of each shard for this consumer alone, at
    /// an extra price. A shard that cannot be subscribed to is polled for five minutes, which the consumer
    /// reports ([`FanOutUnavailable`](crate::observer::ShardEvent::FanOutUnavailable)).
    ///
    /// The client needs an HTTP/2 connection to Kinesis and the permission `kinesis:SubscribeToShard`. To
    /// register a consumer it also needs `RegisterStreamConsumer`, `DescribeStreamConsumer` and
    /// `DescribeStreamSummary`.
    FanOut(FanOutConsumer),
}

/// The registered consumer that Kinesis pushes to. Each one belongs to one process at a time: two processes
/// that subscribe in its name take the shards from each other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FanOutConsumer {
    /// The consumer with the application's name, which is registered if there is none. It stays registered,
    /// at a cost, until an operator deregisters it.
    #[default]
    Application,
    /// The consumer with this name, which is registered if there is none.
    Name(String),
    /// The consumer with this ARN, which must exist.
    Arn(String),
}

impl Retrieval {
    /// Returns enhanced fan-out under the application's name.
    pub fn fan_out() -> Self {
        Retrieval::FanOut(FanOutConsumer::Application)
    }
}
