//! AWS clients as redrive calls them.

use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::timeout::TimeoutConfig;

/// The SDK has none by default, and a call can hang for ever.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

/// The same client with an operation-attempt timeout, unless the user has set one.
pub(crate) fn with_timeout(client: &Client) -> Client {
    let config = client.config();
    let timeouts = config
        .timeout_config()
        .map(TimeoutConfig::to_builder)
        .unwrap_or_default()
        .take_unset_from(TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT_TIMEOUT))
        .build();
    Client::from_conf(config.to_builder().timeout_config(timeouts).build())
}

/// The same, and without the SDK's retries: who calls it owns them, and two owners multiply.
pub(crate) fn without_retries(client: &Client) -> Client {
    let config = with_timeout(client).config().to_builder();
    Client::from_conf(config.retry_config(RetryConfig::disabled()).build())
}
