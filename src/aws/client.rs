//! AWS clients as redrive calls them.

#[cfg(any(
    feature = "kinesis",
    feature = "sqs",
    feature = "sns",
    feature = "s3",
    feature = "cloudwatch"
))]
use std::time::Duration;

use aws_smithy_types::timeout::TimeoutConfig;

/// The SDK has none by default, and a call can hang for ever.
#[cfg(any(
    feature = "kinesis",
    feature = "sqs",
    feature = "sns",
    feature = "s3",
    feature = "cloudwatch"
))]
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

/// A service's clients: every SDK crate has types of its own.
macro_rules! clients_of {
    ($service:ident, $sdk:ident) => {
        pub(crate) mod $service {
            use std::time::Duration;

            use aws_smithy_types::retry::RetryConfig;
            use $sdk::Client;

            /// The same client with an operation-attempt timeout, unless the user has set one.
            pub(crate) fn with_timeout(client: &Client, attempt: Duration) -> Client {
                let config = client.config();
                let timeouts = super::bounded(config.timeout_config(), attempt);
                Client::from_conf(config.to_builder().timeout_config(timeouts).build())
            }

            /// The same, and without the SDK's retries: who calls it owns them, and two owners multiply.
            #[allow(dead_code, reason = "not each service is written to")]
            pub(crate) fn without_retries(client: &Client, attempt: Duration) -> Client {
                let config = with_timeout(client, attempt).config().to_builder();
                Client::from_conf(config.retry_config(RetryConfig::disabled()).build())
            }
        }
    };
}

#[cfg(feature = "kinesis")]
clients_of!(kinesis, aws_sdk_kinesis);
#[cfg(feature = "dynamodb")]
clients_of!(dynamodb, aws_sdk_dynamodb);
#[cfg(feature = "sqs")]
clients_of!(sqs, aws_sdk_sqs);
#[cfg(feature = "sns")]
clients_of!(sns, aws_sdk_sns);
#[cfg(feature = "s3")]
clients_of!(s3, aws_sdk_s3);
#[cfg(feature = "cloudwatch")]
clients_of!(cloudwatch, aws_sdk_cloudwatch);

/// What is set already, and this where nothing is.
fn bounded(timeouts: Option<&TimeoutConfig>, attempt: std::time::Duration) -> TimeoutConfig {
    let attempt = TimeoutConfig::builder().operation_attempt_timeout(attempt);
    let set = timeouts.map(TimeoutConfig::to_builder).unwrap_or_default();
    set.take_unset_from(attempt).build()
}
