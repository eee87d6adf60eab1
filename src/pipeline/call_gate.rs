//! A gate in front of every processor call, for runs in which one call may be the process's last.

use super::window::Ordinal;
use crate::dead_letter::Reason;
use crate::engine::{Group, Member, MemberStep, Resilient, Run, Stepped};
use crate::processor::Handler;
use crate::record::Record;

/// Decides about each processor call before it begins.
pub(crate) trait CallGate: Send + Sync {
    /// A guard that is dropped when the attempt ends.
    type Turn: Send;

    /// True if the gate admits every call at once.
    const ADMITS_ALL: bool = false;

    fn take(&self, record: &Record) -> impl Future<Output = Admission<Self::Turn>> + Send;

    /// Makes the call. `runs_elsewhere` returns whether the processor works on another thread, which is known
    /// once the call has begun.
    fn watch<F: Future + Send>(
        &self,
        turn: Self::Turn,
        call: F,
        runs_elsewhere: impl Fn() -> bool + Send,
    ) -> impl Future<Output = F::Output> + Send
    where
        F::Output: Send;

    /// Takes one step of a record. A step that calls the processor asks the gate first.
    fn step<P: Handler>(
        &self,
        resilient: &Resilient<P>,
        run: &Run,
        ordinal: Ordinal,
        record: Record,
        again: Option<Box<Group>>,
    ) -> impl Future<Output = Stepped> + Send {
        async move {
            if again.as_ref().is_some_and(|group| !group.calls_handler()) {
                return resilient.step(ordinal, record, again, run).await;
            }
            let group = |again: Option<Box<Group>>, record| {
                again.unwrap_or_else(|| Group::alone(Member::new(ordinal, None, record)))
            };
            match self.take(&record).await {
                Admission::Attempt(turn) => {
                    let call = resilient.step(ordinal, record, again, run);
                    self.watch(turn, call, || resilient.runs_elsewhere()).await
                }
                Admission::GivenUp(reason) => {
                    let place = record.place();
                    let group = group(again, record).given_up(reason);
                    resilient.step(ordinal, place, Some(group), run).await
                }
                Admission::Stopped => {
                    Stepped::Otherwise(Box::new(vec![MemberStep::Later(group(again, record))]))
                }
            }
        }
    }
}

/// The gate's decision about a record.
#[cfg_attr(not(feature = "kinesis"), allow(dead_code))]
pub(crate) enum Admission<T> {
    Attempt(T),
    /// The record becomes a dead letter.
    GivenUp(Reason),
    /// The shard stopped while the record waited: the record is released without an attempt.
    Stopped,
}

/// A gate that admits every call at once.
pub(crate) struct NoGate;

impl CallGate for NoGate {
    type Turn = ();

    const ADMITS_ALL: bool = true;

    async fn take(&self, _: &Record) -> Admission<()> {
        Admission::Attempt(())
    }

    async fn watch<F: Future + Send>(&self, (): (), call: F, _: impl Fn() -> bool + Send) -> F::Output
    where
        F::Output: Send,
    {
        call.await
    }

    /// Returns the engine's own future: another one around it would cost every record.
    fn step<P: Handler>(
        &self,
        resilient: &Resilient<P>,
        run: &Run,
        ordinal: Ordinal,
        record: Record,
        again: Option<Box<Group>>,
    ) -> impl Future<Output = Stepped> + Send {
        resilient.step(ordinal, record, again, run)
    }
}
