//! The largest dead letter that a target takes.
//!
//! An operator may change the limit of a target at any time, and the sink may lack the permission to read it.
//! A dead letter is therefore refused only for a limit that the target has just confirmed, or that no target
//! of its kind can exceed. In all other cases the service decides.

use std::future::Future;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The time before a target is asked for its limit again, after it did not answer. A missing permission is a
/// typical cause.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5 * 60);

/// The size limit of a target, in bytes.
#[derive(Debug)]
pub(in crate::dead_letter) struct SizeLimit {
    /// The limits that a target of the service can have.
    possible: RangeInclusive<u64>,
    /// The limit that the target last reported; 0 while unknown.
    reported: AtomicU64,
    /// The time at which the target was last asked, if it did not answer.
    unanswered: Mutex<Option<Instant>>,
}

impl SizeLimit {
    /// Creates the limit of a target that has one of these limits, still unknown.
    pub(in crate::dead_letter) fn within(possible: RangeInclusive<u64>) -> Self {
        SizeLimit {
            possible,
            reported: AtomicU64::new(0),
            unanswered: Mutex::new(None),
        }
    }

    /// Creates a limit that is the same for all targets. No target is asked for it.
    pub(in crate::dead_letter) fn fixed(bytes: u64) -> Self {
        SizeLimit::within(bytes..=bytes)
    }

    /// Remembers the limit in a description of the target, or that the description contains none.
    pub(in crate::dead_letter) fn report(&self, bytes: Option<u64>) {
        self.reported.store(bytes.unwrap_or(0), Ordering::Relaxed);
    }

    /// Returns the limit for entries of up to `bytes` bytes, or `None` if the target is known to take them.
    ///
    /// A larger entry causes a question, because the limit may have been raised. If the target does not
    /// answer, the limit is the largest possible one.
    pub(super) async fn for_entries(
        &self,
        bytes: u64,
        question: impl Future<Output = Option<u64>>,
    ) -> Option<u64> {
        if bytes <= self.known() {
            return None;
        }
        Some(self.ask(question).await.unwrap_or(*self.possible.end()))
    }

    /// Returns the limit that a refused entry of `bytes` bytes exceeds, if it exceeds one. `stated` is the
    /// exceeded limit according to the refusal; it counts only if the target does not answer.
    pub(super) async fn exceeded_by(
        &self,
        bytes: u64,
        stated: Option<u64>,
        question: impl Future<Output = Option<u64>>,
    ) -> Option<u64> {
        if bytes <= *self.possible.start() {
            return None;
        }
        match self.ask(question).await {
            Some(limit) => Some(limit).filter(|&limit| bytes > limit),
            None => stated,
        }
    }

    fn known(&self) -> u64 {
        self.reported.load(Ordering::Relaxed).max(*self.possible.start())
    }

    /// Asks the target for its limit, unless it recently did not answer.
    async fn ask(&self, question: impl Future<Output = Option<u64>>) -> Option<u64> {
        if self.possible.start() == self.possible.end() {
            return Some(*self.possible.end());
        }
        let unanswered = || self.unanswered.lock().unwrap_or_else(PoisonError::into_inner);
        if unanswered().is_some_and(|asked| asked.elapsed() < ASK_AGAIN_AFTER) {
            return None;
        }
        let limit = question.await;
        *unanswered() = limit.is_none().then(Instant::now);
        limit
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use tokio::time::advance;

    use super::*;

    async fn unasked() -> Option<u64> {
        panic!("the target is asked")
    }

    #[tokio::test]
    async fn entries_up_to_the_smallest_limit_cause_no_question() {
        let limit = SizeLimit::within(10..=100);
        assert_eq!(limit.for_entries(10, unasked()).await, None);
        assert_eq!(limit.exceeded_by(10, Some(5), unasked()).await, None);
    }

    #[tokio::test]
    async fn entries_up_to_the_reported_limit_cause_no_question() {
        let limit = SizeLimit::within(10..=100);
        limit.report(Some(50));
        assert_eq!(limit.for_entries(50, unasked()).await, None);
        assert_eq!(limit.for_entries(51, ready(Some(60))).await, Some(60));
        limit.report(None);
        assert_eq!(limit.for_entries(50, ready(Some(40))).await, Some(40));
    }

    #[tokio::test]
    async fn fixed_limit_needs_no_question() {
        let limit = SizeLimit::fixed(10);
        assert_eq!(limit.for_entries(10, unasked()).await, None);
        assert_eq!(limit.for_entries(11, unasked()).await, Some(10));
        assert_eq!(limit.exceeded_by(11, None, unasked()).await, Some(10));
    }

    #[tokio::test]
    async fn unknown_limit_is_the_largest_possible_one() {
        let limit = SizeLimit::within(10..=100);
        assert_eq!(limit.for_entries(11, ready(None)).await, Some(100));
    }

    #[tokio::test]
    async fn refusal_counts_only_above_the_limit() {
        let limit = SizeLimit::within(10..=100);
        assert_eq!(limit.exceeded_by(20, Some(15), ready(Some(20))).await, None);
        assert_eq!(limit.exceeded_by(21, None, ready(Some(20))).await, Some(20));
    }

    #[tokio::test]
    async fn stated_limit_counts_without_an_answer() {
        let limit = SizeLimit::within(10..=100);
        assert_eq!(limit.exceeded_by(20, None, ready(None)).await, None);
        assert_eq!(limit.exceeded_by(20, Some(15), unasked()).await, Some(15));
    }

    #[tokio::test(start_paused = true)]
    async fn unanswered_question_is_repeated_after_five_minutes() {
        let limit = SizeLimit::within(10..=100);
        assert_eq!(limit.for_entries(11, ready(None)).await, Some(100));
        advance(ASK_AGAIN_AFTER - Duration::from_secs(1)).await;
        assert_eq!(limit.for_entries(11, unasked()).await, Some(100));
        advance(Duration::from_secs(1)).await;
        assert_eq!(limit.for_entries(11, ready(Some(20))).await, Some(20));
        // An answered question may be repeated at once.
        assert_eq!(limit.for_entries(11, ready(Some(30))).await, Some(30));
    }
}
