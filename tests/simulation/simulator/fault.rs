//! The kinds of faults that the simulation injects, and their counts.

use std::fmt;
use std::str::FromStr;

macro_rules! faults {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A kind of fault. The command line uses its name.
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
    /// The service throttles a call.
    Throttled = "throttled",
    /// The key management service (KMS) throttles a call.
    KmsThrottled = "kms-throttled",
    /// The service answers with an internal failure.
    ServerError = "server-error",
    /// The credentials are refused for a while.
    AccessDenied = "access-denied",
    /// The request does not arrive.
    RequestLost = "request-lost",
    /// The request takes effect, and its response is lost.
    ResponseLost = "response-lost",
    /// The request takes effect, and no response ever arrives.
    Silence = "silence",
    /// The request arrives twice.
    RequestDoubled = "request-doubled",
    /// The response takes seconds.
    SlowResponse = "slow-response",
    /// The response cannot be parsed.
    Garbled = "garbled",
    /// A shard iterator expires early.
    ExpiredIterator = "expired-iterator",
    /// A page is empty although the shard has more records.
    EmptyPage = "empty-page",
    /// The answer to a call is an empty object.
    EmptyAnswer = "empty-answer",
    /// A page of an open shard has no next iterator.
    NoNextIterator = "no-next-iterator",
    /// Kinesis refuses a sequence number of the shard.
    RefusedNumber = "refused-number",
    /// A listing lacks a shard.
    PartialListing = "partial-listing",
    /// A page of a listing contains each shard twice.
    RepeatedListing = "repeated-listing",
    /// The retention of the stream changes.
    RetentionChanged = "retention-changed",
    /// No process reads the stream for hours, perhaps longer than the retention of the stream.
    Absence = "absence",
    /// The stream is deleted, and another stream of the same name is created.
    Recreated = "recreated",
    /// Some dead letters of a request to the sink are not written.
    EntryFailed = "entry-failed",
    /// The sink panics.
    SinkPanic = "sink-panic",
    /// The sink takes longer than any timeout.
    SinkSlow = "sink-slow",
    /// An observer panics.
    ObserverPanic = "observer-panic",
    /// A write to the checkpoint store takes effect after its caller gave up the call.
    LateWrite = "late-write",
    /// The dead-letter sink is down for a while.
    SinkOutage = "sink-outage",
    /// The checkpoint store is down for a while.
    StoreOutage = "store-outage",
    /// Kinesis is down for a while.
    KinesisOutage = "kinesis-outage",
    /// The dependency of the processor is down for a while.
    Outage = "outage",
    /// A bad deploy permanently fails every record for a while.
    BadDeploy = "bad-deploy",
    /// A processor call takes long.
    Slow = "slow",
    /// A processor call never returns.
    Hanging = "hanging",
    /// A processor call panics.
    Panicking = "panicking",
    /// A record fails at first, and then succeeds.
    Flaky = "flaky",
    /// A record fails at every attempt.
    Poison = "poison",
    /// The process crashes.
    Crash = "crash",
    /// The process is shut down.
    Shutdown = "shutdown",
    /// The consumer's future is dropped.
    Dropped = "dropped",
    /// A shard is split.
    Split = "split",
    /// Two shards are merged.
    Merge = "merge",
    /// A shard is not listed yet although its parent is closed.
    LateListing = "late-listing",
    /// Another worker takes a shard.
    LeaseTaken = "lease-taken",
    /// Another worker requests the handover of a shard.
    LeaseWanted = "lease-wanted",
    /// The process is suspended for up to 20 minutes.
    ClockJump = "clock-jump",
    /// A subscription is accepted and ends without an event.
    SubscriptionEmpty = "subscription-empty",
    /// The connection of a subscription breaks.
    SubscriptionBroken = "subscription-broken",
    /// A subscription stops sending events, even empty ones.
    SubscriptionSilent = "subscription-silent",
    /// A subscription ends with an error of the service.
    SubscriptionFailed = "subscription-failed",
    /// A subscription begins before the requested record.
    SubscribedEarly = "subscribed-early",
    /// Another actor deregisters the fan-out consumer.
    Deregistered = "deregistered",
    /// A worker of a fleet makes no progress for a while.
    Paused = "paused",
    /// A worker of a fleet is killed.
    Killed = "killed",
    /// A worker of a fleet is shut down.
    Stopped = "stopped",
    /// A worker joins a running fleet.
    Joined = "joined",
    /// The wall clock of a worker is wrong by up to minutes.
    ClockSkew = "clock-skew",
    /// Another actor deletes the leader's item.
    LeaderDeleted = "leader-deleted",
    /// Another actor takes the leadership, and never renews it.
    LeaderReplaced = "leader-replaced",
    /// Another actor marks the leadership as released.
    LeaderReleased = "leader-released",
    /// One of the tables of a fleet refuses calls for a while.
    TableOutage = "table-outage",
    /// A read without strong consistency returns old rows.
    StaleRead = "stale-read",
    /// The index learns seconds later about a new owner.
    IndexLate = "index-late",
    /// The table has no index of the owners.
    IndexMissing = "index-missing",
}

impl Fault {
    /// Returns whether the fault happens only to a fleet.
    pub fn is_of_fleet(self) -> bool {
        self >= Fault::Paused
    }
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
            format!("unknown kind of fault; the kinds are {}", names.join(", "))
        })
    }
}

/// The number of injected faults of each kind.
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
