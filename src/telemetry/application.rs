//! The application that an observer reports for.

use std::sync::OnceLock;

use crate::config::ConfigError;

/// The name of the application, set when the observer is [attached](crate::observer::Observer::attach).
#[derive(Debug, Default)]
pub(super) struct Application(OnceLock<String>);

/// The name while the observer is not attached, because an observer that wraps it has not forwarded the call.
const UNKNOWN: &str = "unknown";

impl Application {
    /// Sets the name. An observer reports for one application only, because events do not name theirs.
    pub(super) fn attach(&self, name: &str) -> Result<(), ConfigError> {
        let known = self.0.get_or_init(|| name.to_owned());
        if known == name {
            return Ok(());
        }
        let problem = format!(
            "the observer already reports for the application {known:?}; create another one for {name:?}"
        );
        Err(ConfigError::new("observer", problem))
    }

    pub(super) fn name(&self) -> &str {
        self.0.get().map_or(UNKNOWN, String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observer_reports_for_one_application() {
        let application = Application::default();
        assert_eq!(application.name(), UNKNOWN);
        for _ in 0..2 {
            assert_eq!(application.attach("billing"), Ok(()));
        }
        let error = application.attach("shipping").expect_err("another application");
        assert_eq!(error.setting(), "observer");
        assert_eq!(application.name(), "billing");
    }
}
