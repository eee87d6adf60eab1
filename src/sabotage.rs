//! Deliberate faults. Each breaks a promise, to show that the tests detect the broken promise.
//!
//! The faults exist only with the feature `__sabotage`, which is for this crate's own tests, and are switched
//! on for one thread. Without the feature the check is a constant, and no code of it is left.

/// A fault that the code commits on demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "__sabotage"), allow(unreachable_pub))]
pub enum Sabotage {
    /// A checkpoint passes the oldest record that is not settled.
    CheckpointEarly,
    /// A record counts as settled before its dead letter is confirmed.
    SettleUnconfirmed,
    /// A record that finds the window full is dropped.
    DropWhenFull,
    /// A record does not wait for the one ahead of it in its lane.
    LoseOrder,
    /// The processor is called once more for a record whose verdict is reached.
    RunAfterVerdict,
    /// A probe counts as an attempt.
    CountProbes,
    /// A record that has exhausted its attempts is held, although no other record fails.
    HoldLoneRecord,
    /// A dead letter does not wait while a breaker is open.
    LetterWhileOpen,
    /// A shard is read before its parents are settled.
    #[cfg_attr(not(feature = "kinesis"), allow(dead_code))]
    StartChildrenEarly,
    /// A worker continues with a shard whose lease it has lost.
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
    /// A sequence number that Kinesis refuses counts as one of another stream.
    #[cfg_attr(not(feature = "kinesis"), allow(dead_code))]
    TrustRefusal,
    /// Records that the stream has dropped are not reported.
    #[cfg_attr(not(feature = "kinesis"), allow(dead_code))]
    HideDataLoss,
    /// A worker takes up a row that is not assigned to it.
    #[cfg_attr(not(feature = "dynamodb"), allow(dead_code))]
    AdoptAnyRow,
    /// A worker takes up a row although another worker still works on the shard.
    #[cfg_attr(not(feature = "dynamodb"), allow(dead_code))]
    ReadDuringHandOver,
    /// A worker keeps a shard that it is asked to hand over.
    #[cfg_attr(not(feature = "dynamodb"), allow(dead_code))]
    IgnoreRequest,
    /// The plan moves a lease as soon as two loads differ.
    #[cfg_attr(not(feature = "kinesis"), allow(dead_code))]
    PlanWithoutHysteresis,
    /// A leader assigns a shard that is being handed over.
    #[cfg_attr(not(feature = "kinesis"), allow(dead_code))]
    LeaderIgnoresHandOver,
    /// A leader asks for a lease that its owner has not taken up.
    #[cfg_attr(not(feature = "kinesis"), allow(dead_code))]
    RequestUnseen,
}

#[cfg(feature = "__sabotage")]
mod switch {
    use std::cell::Cell;

    use super::Sabotage;

    thread_local! {
        static COMMITTED: Cell<Option<Sabotage>> = const { Cell::new(None) };
    }

    impl Sabotage {
        /// All faults.
        pub const ALL: [Sabotage; 23] = [
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
            Sabotage::AdoptAnyRow,
            Sabotage::ReadDuringHandOver,
            Sabotage::IgnoreRequest,
            Sabotage::PlanWithoutHysteresis,
            Sabotage::LeaderIgnoresHandOver,
            Sabotage::RequestUnseen,
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

#[cfg(not(feature = "__sabotage"))]
impl Sabotage {
    #[inline]
    pub(crate) const fn is_committed(self) -> bool {
        false
    }
}
