//! From where a record goes on, or several together.

use super::group::Group;
use super::protection::Pass;
use super::retry_state::RetryState;

/// What a record's next step goes on from; a first attempt that nothing stands against has none.
pub(crate) struct Stage {
    pub(crate) state: Option<Box<RetryState>>,
    pub(crate) pass: Pass,
    /// The records that go on together, if it is not one by itself.
    pub(crate) group: Group,
}

impl Stage {
    /// Whether going on from it calls the handler.
    pub(crate) fn calls_handler(&self) -> bool {
        self.state.as_ref().is_none_or(|state| state.calls_handler())
    }
}
