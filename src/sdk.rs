//! AWS clients as redrive calls them.

use std::time::Duration;

#[cfg(feature = "kinesis")]
use aws_sdk_kinesis::Client;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;

/// The SDK has none by default, and a call can hang for ever.
#[cfg(feature = "kinesis")]
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

/// The same client with an operation-attempt timeout, unless the user has set one.
#[cfg(feature = "kinesis")]
pub(crate) fn with_timeout(client: &Client) -> Client {
    let config = client.config();
    let timeouts = bounded(config.timeout_config(), ATTEMPT_TIMEOUT);
    Client::from_conf(config.to_builder().timeout_config(timeouts).build())
}

/// The same, and without the SDK's retries: who calls it owns them, and two owners multiply.
#[cfg(feature = "kinesis")]
pub(crate) fn without_retries(client: &Client) -> Client {
    let config = with_timeout(client).config().to_builder();
    Client::from_conf(config.retry_config(RetryConfig::disabled()).build())
}

/// The same for DynamoDB.
#[cfg(feature = "dynamodb")]
pub(crate) fn dynamodb_without_retries(
    client: &aws_sdk_dynamodb::Client,
    attempt_timeout: Duration,
) -> aws_sdk_dynamodb::Client {
    let config = client.config();
    let timeouts = bounded(config.timeout_config(), attempt_timeout);
    let config = config.to_builder().timeout_config(timeouts);
    aws_sdk_dynamodb::Client::from_conf(config.retry_config(RetryConfig::disabled()).build())
}

/// What is set already, and this where nothing is.
fn bounded(timeouts: Option<&TimeoutConfig>, attempt: Duration) -> TimeoutConfig {
    let attempt = TimeoutConfig::builder().operation_attempt_timeout(attempt);
    let set = timeouts.map(TimeoutConfig::to_builder).unwrap_or_default();
    set.take_unset_from(attempt).build()
}
