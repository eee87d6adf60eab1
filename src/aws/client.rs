//! AWS clients with the settings that redrive needs.

use std::error::Error;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};
#[cfg(any(
    feature = "kinesis",
    feature = "sqs",
    feature = "sns",
    feature = "s3",
    feature = "cloudwatch"
))]
use std::time::Duration;

use aws_smithy_runtime_api::box_error::BoxError as InterceptorError;
use aws_smithy_runtime_api::client::interceptors::context::BeforeTransmitInterceptorContextRef;
use aws_smithy_runtime_api::client::interceptors::{Intercept, dyn_dispatch_hint};
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_smithy_types::timeout::TimeoutConfig;

use super::FailedCall;

/// The timeout of one attempt of a call. The SDK has none by default, and a call can hang forever.
#[cfg(any(
    feature = "kinesis",
    feature = "sqs",
    feature = "sns",
    feature = "s3",
    feature = "cloudwatch"
))]
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

/// A client whose errors state where its calls went. Clones share the client.
#[derive(Debug, Clone)]
pub(crate) struct Located<C> {
    client: C,
    place: Place,
}

impl<C> Located<C> {
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Describes a failed call of this client: see [`FailedCall::new`].
    pub(crate) fn failed<E, R>(
        &self,
        task: impl Into<String>,
        action: &'static str,
        error: SdkError<E, R>,
    ) -> FailedCall
    where
        E: Error + ProvideErrorMetadata + Send + Sync + 'static,
        R: fmt::Debug + Send + Sync + 'static,
    {
        FailedCall::new(&self.place, task, action, error)
    }
}

impl<C> Deref for Located<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.client
    }
}

/// The destination of a client's calls: `in us-east-1`, or `at http://localhost:4566` outside AWS.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    region: Option<String>,
    /// The endpoint, known after the first call; unset for an endpoint of AWS.
    endpoint: Arc<OnceLock<String>>,
}

impl Place {
    pub(crate) fn has_no_region(&self) -> bool {
        self.region.is_none()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.endpoint.get(), &self.region) {
            (Some(endpoint), _) => write!(f, "at {endpoint}"),
            (None, Some(region)) => write!(f, "in {region}"),
            (None, None) => Ok(()),
        }
    }
}

/// Notes the endpoint, which the client's configuration does not reveal.
#[derive(Debug)]
struct NoteEndpoint(Arc<OnceLock<String>>);

#[dyn_dispatch_hint]
impl Intercept for NoteEndpoint {
    fn name(&self) -> &'static str {
        "redrive::NoteEndpoint"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), InterceptorError> {
        if self.0.get().is_none()
            && let Some(endpoint) = own_endpoint(context.request().uri())
        {
            let _ = self.0.set(endpoint.to_owned());
        }
        Ok(())
    }
}

/// Returns the scheme and authority of an address; `None` for an address of AWS.
fn own_endpoint(uri: &str) -> Option<&str> {
    let (scheme, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let is_of_aws = authority.contains(".amazonaws.com") || authority.ends_with(".api.aws");
    (!is_of_aws).then(|| &uri[..scheme.len() + "://".len() + authority.len()])
}

/// Defines the clients of a service, because every SDK crate has its own types.
macro_rules! clients_of {
    ($service:ident, $sdk:ident) => {
        pub(crate) mod $service {
            use std::time::Duration;

            use aws_smithy_types::retry::RetryConfig;
            use $sdk::Client;
            use $sdk::config::Builder;

            use super::{Located, NoteEndpoint, Place};

            /// Returns the client with an operation-attempt timeout, unless the user has set one.
            #[allow(dead_code, reason = "not each service has a client with retries")]
            pub(crate) fn with_timeout(client: &Client, attempt: Duration) -> Located<Client> {
                located(client, bounded(client, attempt))
            }

            /// Returns the client with the same timeout and without the SDK's retries. The caller owns the
            /// retries, and two owners would multiply them.
            #[allow(dead_code, reason = "not each service is written to")]
            pub(crate) fn without_retries(client: &Client, attempt: Duration) -> Located<Client> {
                let config = bounded(client, attempt).retry_config(RetryConfig::disabled());
                located(client, config)
            }

            fn bounded(client: &Client, attempt: Duration) -> Builder {
                let config = client.config();
                let timeouts = super::bounded(config.timeout_config(), attempt);
                config.to_builder().timeout_config(timeouts)
            }

            fn located(client: &Client, config: Builder) -> Located<Client> {
                let region = client.config().region();
                let place = Place {
                    region: region.map(|region| region.as_ref().to_owned()),
                    ..Place::default()
                };
                let config = config.interceptor(NoteEndpoint(place.endpoint.clone()));
                Located {
                    client: Client::from_conf(config.build()),
                    place,
                }
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

/// Keeps the user's timeouts and adds the attempt timeout if it is unset.
fn bounded(timeouts: Option<&TimeoutConfig>, attempt: std::time::Duration) -> TimeoutConfig {
    let attempt = TimeoutConfig::builder().operation_attempt_timeout(attempt);
    let set = timeouts.map(TimeoutConfig::to_builder).unwrap_or_default();
    set.take_unset_from(attempt).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_of_aws_is_told_by_its_region() {
        assert_eq!(own_endpoint("https://kinesis.us-east-1.amazonaws.com/"), None);
        assert_eq!(own_endpoint("https://kinesis.eu-west-1.api.aws/?a=b"), None);
        assert_eq!(own_endpoint("https://kinesis.cn-north-1.amazonaws.com.cn/"), None);
        assert_eq!(
            own_endpoint("http://localhost:4566/queue/a"),
            Some("http://localhost:4566")
        );
    }
}
