//! The support crate of the tests: handlers, sinks, records, a proxy and emulators.

pub mod chaos;
pub mod cloudwatch;
pub mod dynamodb;
pub mod emulator;
pub mod events;
pub mod faulty;
pub mod journal;
pub mod kcl;
pub mod kill;
pub mod ledger;
pub mod localstack;
pub mod proxy;
pub mod python;
pub mod script;
pub mod sink;
pub mod stream;
pub mod waiting;
pub mod wire;

/// Returns `usual`, or `large` if `REDRIVE_TEST_LARGE=1` is set.
///
/// `usual` is enough to show the property. `large` searches for rare violations.
pub fn volume(usual: u64, large: u64) -> u64 {
    match std::env::var("REDRIVE_TEST_LARGE").is_ok_and(|value| value == "1") {
        true => large,
        false => usual,
    }
}

#[doc(hidden)]
pub use aws_smithy_http_client;

/// Builds a client for a server that takes plain HTTP and ignores credentials.
#[macro_export]
macro_rules! local_client {
    ($sdk:ident, $endpoint:expr $(, $setting:ident)?) => {
        $sdk::Client::from_conf(
            $sdk::Config::builder()
                .behavior_version($sdk::config::BehaviorVersion::latest())
                .region($sdk::config::Region::new("us-east-1"))
                .credentials_provider($sdk::config::Credentials::new("test", "test", None, None, "static"))
                .endpoint_url($endpoint)
                $(.$setting(true))?
                // On a busy machine a test server may answer slowly.
                .stalled_stream_protection($sdk::config::StalledStreamProtectionConfig::disabled())
                .http_client($crate::aws_smithy_http_client::Builder::new().build_http())
                .build(),
        )
    };
}

/// The snippets of the operations guide, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/operations.md")]
pub struct OperationsGuide;
