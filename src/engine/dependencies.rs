//! The state of what a processor's records depend on, for health checks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::protection::breaker::{CircuitBreaker, CircuitBreakerState};
use crate::protection::{DeadLetterGuard, RetryBudget};

/// A view of the protections and of the dead-letter sink. Clones show the same state.
#[derive(Debug, Clone)]
pub(crate) struct Dependencies {
    /// The breakers, each with the dependency that it is for.
    pub(super) breakers: Vec<(Option<String>, CircuitBreaker)>,
    pub(super) guard: Option<DeadLetterGuard>,
    pub(super) budget: Option<RetryBudget>,
    /// The number of puts in a row of which the dead-letter sink confirmed nothing.
    pub(super) sink_failures: Option<Arc<AtomicU32>>,
}

impl Dependencies {
    /// Returns the dependencies whose breaker is not closed. `None` stands for the processor's own breaker.
    pub(crate) fn down(&self) -> impl Iterator<Item = Option<String>> + '_ {
        let down = |breaker: &CircuitBreaker| breaker.state() != CircuitBreakerState::Closed;
        let breakers = self.breakers.iter().filter(move |(_, breaker)| down(breaker));
        breakers.map(|(dependency, _)| dependency.clone())
    }

    pub(crate) fn is_guard_stopped(&self) -> bool {
        self.guard.as_ref().is_some_and(|guard| !guard.state().is_empty())
    }

    pub(crate) fn is_budget_empty(&self) -> bool {
        self.budget.as_ref().is_some_and(|budget| budget.state() == 0)
    }

    pub(crate) fn is_sink_down(&self) -> bool {
        let failures = self.sink_failures.as_ref();
        failures.is_some_and(|failures| failures.load(Ordering::Relaxed) > 0)
    }
}
