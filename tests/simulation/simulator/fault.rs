//! What goes wrong, by kind.

use std::fmt;
use std::str::FromStr;

macro_rules! faults {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A kind of fault. Its name is the one used on the command line.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Fault {
            $($(#[$doc])* $variant,)*
        }

        impl Fault {
            pub const ALL: &[Fault] = &[$(Fault::$variant,)*];

            pub const fn name(self) -> &'static str {
                match self {
                    $(Fault::$variant => $name,)*
                }
            }
        }
    };
}

faults! {
    /// Kinesis asks to be called more slowly.
    Throttled = "throttled",
    /// The key service asks for that.
    KmsThrottled = "kms-throttled",
    /// Kinesis answers with an internal failure.
    ServerError = "server-error",
    /// The credentials are refused for a while.
    AccessDenied = "access-denied",
    /// The request does not arrive.
    RequestLost = "request-lost",
    /// The request does what it asks for, and its response does not arrive.
    ResponseLost = "response-lost",
    /// The request does what it asks for, and no response ever comes.
    Silence = "silence",
    /// The request arrives twice.
    RequestDoubled = "request-doubled",
    /// The response takes seconds.
    SlowResponse = "slow-response",
    /// The response cannot be read.
    Garbled = "garbled",
    /// A shard iterator is refused before its time.
    ExpiredIterator = "expired-iterator",
    /// A page is empty though there is more to read.
    EmptyPage = "empty-page",
    /// A call is answered with an empty object.
    EmptyAnswer = "empty-answer",
    /// A page of an open shard has no next iterator.
    NoNextIterator = "no-next-iterator",
    /// A sequence number of the shard is refused.
    RefusedNumber = "refused-number",
    /// A listing lacks a shard.
    PartialListing = "partial-listing",
    /// A listing has each shard twice.
    RepeatedListing = "repeated-listing",
    /// The stream has another retention than before.
    RetentionChanged = "retention-changed",
    /// The process is away for longer than the stream keeps its records.
    Absence = "absence",
    /// The stream is deleted, and another one has its name.
    Recreated = "recreated",
    /// Some entries of a PutRecords call are not written.
    EntryFailed = "entry-failed",
    /// The sink panics.
    SinkPanic = "sink-panic",
    /// The sink takes longer than any timeout.
    SinkSlow = "sink-slow",
    /// An observer panics.
    ObserverPanic = "observer-panic",
    /// A write to the checkpoint store takes effect long after it was given up.
    LateWrite = "late-write",
    /// The dead-letter sink is down for a while.
    SinkOutage = "sink-outage",
    /// The checkpoint store is down for a while.
    StoreOutage = "store-outage",
    /// Kinesis is down for a while.
    KinesisOutage = "kinesis-outage",
    /// What the handler needs is down for a while.
    Outage = "outage",
    /// For a while a bad deploy fails every record for good.
    BadDeploy = "bad-deploy",
    /// A record whose handler takes long.
    Slow = "slow",
    /// A record whose handler never comes back.
    Hanging = "hanging",
    /// A record whose handler panics.
    Panicking = "panicking",
    /// A record that fails some times.
    Flaky = "flaky",
    /// A record that fails for good.
    Poison = "poison",
    /// The process dies.
    Crash = "crash",
    /// The process is shut down.
    Shutdown = "shutdown",
    /// The consumer's future is dropped.
    Dropped = "dropped",
    /// A shard is split.
    Split = "split",
    /// Two shards are merged.
    Merge = "merge",
    /// A shard is not listed yet though its parent is closed.
    LateListing = "late-listing",
    /// Another worker takes a shard.
    LeaseTaken = "lease-taken",
    /// Another worker asks for a shard.
    LeaseWanted = "lease-wanted",
    /// The process stands still for minutes.
    ClockJump = "clock-jump",
    /// A subscription is accepted, and ends without an event.
    SubscriptionEmpty = "subscription-empty",
    /// The connection of a subscription breaks.
    SubscriptionBroken = "subscription-broken",
    /// A subscription sends nothing any more, not even that there is nothing.
    SubscriptionSilent = "subscription-silent",
    /// A subscription ends with an error of the service.
    SubscriptionFailed = "subscription-failed",
    /// A subscription begins before the record that was asked for.
    SubscribedEarly = "subscribed-early",
    /// Somebody deregisters the consumer.
    Deregistered = "deregistered",
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Fault::ALL.iter().find(|fault| fault.name() == name);
        found.copied().ok_or_else(|| {
            let names: Vec<&str> = Fault::ALL.iter().map(|fault| fault.name()).collect();
            format!("there are {}", names.join(", "))
        })
    }
}

/// How often each kind of fault was injected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts([u64; Fault::ALL.len()]);

impl Default for Counts {
    fn default() -> Self {
        Counts([0; Fault::ALL.len()])
    }
}

impl Counts {
    pub fn add(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    pub fn of(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    pub fn add_all(&mut self, other: &Counts) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (Fault, u64)> + '_ {
        Fault::ALL.iter().copied().zip(self.0)
    }
}
