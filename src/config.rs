//! What is wrong with a configuration.

/// A setting that cannot be used, found when something is built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct ConfigError {
    setting: &'static str,
    problem: String,
}

impl ConfigError {
    pub(crate) fn new(setting: &'static str, problem: impl Into<String>) -> Self {
        ConfigError {
            setting,
            problem: problem.into(),
        }
    }

    /// The builder's method that must be called, or called otherwise.
    pub fn setting(&self) -> &'static str {
        self.setting
    }
}
