//! Deliberate faults: each breaks a promise, to show that the tests would notice.
//!
//! They exist with feature `sabotage` only, which is for this crate's own tests, and are switched on for
//! one thread. Without the feature the question is a constant and no code is left of it.

/// A fault that the code commits when it is told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "sabotage"), allow(unreachable_pub))]
pub enum Sabotage {
    /// A checkpoint passes the oldest record that is not settled.
    CheckpointEarly,
    /// A record counts as settled while its letter is still on the way.
    SettleUnconfirmed,
    /// A record that finds the window full is dropped.
    DropWhenFull,
    /// A record does not wait for the one ahead of it in its lane.
    LoseOrder,
    /// The handler is called once more for a record whose verdict is reached.
    RunAfterVerdict,
    /// A probe counts as an attempt.
    CountProbes,
    /// A record that has used up its attempts is held, although no other fails.
    HoldLoneRecord,
    /// A letter does not wait while a breaker is open.
    LetterWhileOpen,
    /// A shard is read before those that it came of are settled.
    #[cfg_attr(not(feature = "kinesis"), allow(dead_code))]
    StartChildrenEarly,
    /// A shard is worked on though its lease is lost.
    #[cfg_attr(not(feature = "kinesis"), allow(dead_code))]
    KeepLostLease,
    /// The end of a subscription counts as the end of its shard.
    #[cfg_attr(not(feature = "kinesis"), allow(dead_code))]
    ExpiredIsClosed,
    /// A subscription that sends nothing is waited for.
    #[cfg_attr(not(feature = "kinesis"), allow(dead_code))]
    TrustSilence,
    /// An answer without a next iterator counts as the end of the shard.
    #[cfg_attr(not(feature = "kinesis"), allow(dead_code))]
    TrustMissingIterator,
    /// A listing without shards counts as a stream without shards.
    #[cfg_attr(not(feature = "kinesis"), allow(dead_code))]
    TrustEmptyListing,
    /// A parent that a listing lacks counts as trimmed.
    #[cfg_attr(not(feature = "kinesis"), allow(dead_code))]
    TrustPartialListing,
    /// A sequence number that Kinesis refuses is believed to be of another stream.
    #[cfg_attr(not(feature = "kinesis"), allow(dead_code))]
    TrustRefusal,
    /// Records that the stream has dropped are not reported.
    #[cfg_attr(not(feature = "kinesis"), allow(dead_code))]
    HideDataLoss,
}

#[cfg(feature = "sabotage")]
mod switch {
    use std::cell::Cell;

    use super::Sabotage;

    thread_local! {
        static COMMITTED: Cell<Option<Sabotage>> = const { Cell::new(None) };
    }

    impl Sabotage {
        /// All of them.
        pub const ALL: [Sabotage; 17] = [
            Sabotage::CheckpointEarly,
            Sabotage::SettleUnconfirmed,
            Sabotage::DropWhenFull,
            Sabotage::LoseOrder,
            Sabotage::RunAfterVerdict,
            Sabotage::CountProbes,
            Sabotage::HoldLoneRecord,
            Sabotage::LetterWhileOpen,
            Sabotage::StartChildrenEarly,
            Sabotage::KeepLostLease,
            Sabotage::ExpiredIsClosed,
            Sabotage::TrustSilence,
            Sabotage::TrustMissingIterator,
            Sabotage::TrustEmptyListing,
            Sabotage::TrustPartialListing,
            Sabotage::TrustRefusal,
            Sabotage::HideDataLoss,
        ];

        /// Commits this fault, and no other, on this thread from now on.
        pub fn commit(fault: Option<Sabotage>) {
            COMMITTED.set(fault);
        }

        #[inline]
        pub(crate) fn is_committed(self) -> bool {
            COMMITTED.get() == Some(self)
        }
    }
}

#[cfg(not(feature = "sabotage"))]
impl Sabotage {
    #[inline]
    pub(crate) const fn is_committed(self) -> bool {
        false
    }
}
