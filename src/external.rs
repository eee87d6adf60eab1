//! Calls of code that is not ours: it may panic, which ends neither a task nor a record's life.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Calls code that is not ours. `None`: it panicked. What the panic says may quote a payload; the panic hook has
/// printed it, and it is not passed on.
#[inline]
pub(crate) fn caught<T>(call: impl FnOnce() -> T) -> Option<T> {
    // What the code shares is its own to keep sound, as on any thread that may panic.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => Some(result),
        Err(panic) => {
            discard(panic);
            None
        }
    }
}

/// Drops what a panic says, which may panic again.
#[cold]
pub(crate) fn discard(panic: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        mem::forget(again);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::panic_any;

    use super::*;

    struct PanicsWhenDropped;

    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            panic_any(PanicsWhenDropped);
        }
    }

    #[test]
    fn a_panic_is_caught_whatever_it_says() {
        assert_eq!(caught(|| 1), Some(1));
        assert_eq!(caught(|| -> u32 { panic!("text") }), None);
        assert_eq!(caught(|| -> u32 { panic_any(PanicsWhenDropped) }), None);
    }
}
