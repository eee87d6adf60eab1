//! The error of a configuration that cannot be used.

/// A setting that cannot be used. Builders return this error when they build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct ConfigError {
    setting: &'static str,
    problem: String,
}

impl ConfigError {
    /// Creates an error about the builder's method with this name.
    ///
    /// An [`Observer`](crate::observer::Observer::attach) returns it for a setting of its own.
    pub fn new(setting: &'static str, problem: impl Into<String>) -> Self {
        ConfigError {
            setting,
            problem: problem.into(),
        }
    }

    /// Returns the builder's method that must be called, or called with another value.
    pub fn setting(&self) -> &'static str {
        self.setting
    }
}
