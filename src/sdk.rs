//! AWS clients as redrive calls them.

use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::timeout::TimeoutConfig;

/// The SDK has none by default, and a call can hang for ever.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

/// The same client without the SDK's retries: who calls it owns them, and two owners multiply. An
/// operation-attempt timeout is set unless the user has.
pub(crate) fn without_retries(client: &Client) -> Client {
    let given = client.config().timeout_config();
    let mut timeouts = given.map_or_else(TimeoutConfig::builder, TimeoutConfig::to_builder);
    if given.is_none_or(|given| given.operation_attempt_timeout().is_none()) {
        timeouts = timeouts.operation_attempt_timeout(ATTEMPT_TIMEOUT);
    }
    let config = client
        .config()
        .to_builder()
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts.build());
    Client::from_conf(config.build())
}
