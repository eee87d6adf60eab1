//! How a stream is read.

/// How a [`Consumer`](crate::consumer::Consumer) reads its shards.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Retrieval {
    /// It asks: a busy shard as often as is allowed, an idle one once a second. All readers of a shard share
    /// 2 MB and 5 calls a second.
    #[default]
    Polling,
    /// Enhanced fan-out: Kinesis pushes, with 2 MB a second of each shard for this consumer alone, for a
    /// price. A shard that cannot be subscribed to is polled for five minutes, and that is reported
    /// ([`FanOutUnavailable`](crate::observer::Event::FanOutUnavailable)).
    ///
    /// The client needs an HTTP/2 connection to Kinesis and the right to `kinesis:SubscribeToShard`; to
    /// register, `RegisterStreamConsumer`, `DescribeStreamConsumer` and `DescribeStreamSummary`.
    FanOut(FanOutConsumer),
}

/// The registered consumer that Kinesis pushes to. It belongs to one process at a time: two that subscribe
/// in its name take the shards from each other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FanOutConsumer {
    /// The one with the application's name; registered if there is none. It stays registered, and costs, until
    /// somebody deregisters it.
    #[default]
    Application,
    /// The one with this name; registered if there is none.
    Name(String),
    /// This one, which must be there.
    Arn(String),
}

impl Retrieval {
    /// Enhanced fan-out under the application's name.
    pub fn fan_out() -> Self {
        Retrieval::FanOut(FanOutConsumer::Application)
    }
}
