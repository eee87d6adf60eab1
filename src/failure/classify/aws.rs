//! The classification of errors of the AWS SDK.

use std::any::{Any, type_name};
use std::error::Error;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use aws_sdk_kinesis::types::error as kinesis;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::{ConnectorError, SdkError};
use aws_smithy_types::error::metadata::{ErrorMetadata, ProvideErrorMetadata};
use aws_smithy_types::error::operation::{BuildError, SerializationError};
use aws_smithy_types::event_stream::RawMessage;

use super::Classify;
use super::aws_code::{aws_code, with_aws_code};
use crate::failure::{Class, Scope, Verdict, chain, mark};

/// Returns the verdict on an error of any AWS service.
///
/// | `SdkError` | verdict |
/// |---|---|
/// | `TimeoutError`, `ResponseError` | transient, dependency |
/// | `DispatchFailure` | transient, dependency: a connection, or credentials that did not load |
/// | `DispatchFailure` of kind user, `ConstructionFailure` | permanent, dependency |
/// | `ServiceError`, status 5xx, 408 or 429 | transient, dependency |
/// | `ServiceError`, a code that [`aws_code`] knows | the verdict of `aws_code` |
/// | `ServiceError`, status 401, 403 or 407 | permanent, dependency |
/// | `ServiceError`, another 4xx status | permanent, scope unknown |
/// | `ServiceError`, any other | transient, scope unknown |
///
/// The verdict contains the error code. A transient verdict also contains the delay that the service asked
/// for (header `x-amz-retry-after`, milliseconds). `R` is the raw response: an `HttpResponse`, or the
/// `RawMessage` of an event stream, which has no status.
///
/// ```
/// use aws_sdk_kinesis::operation::put_record::{PutRecordError, PutRecordOutput};
/// use aws_sdk_kinesis::error::SdkError;
/// use redrive::{Failure, classify::sdk_error};
///
/// fn checked(result: Result<PutRecordOutput, SdkError<PutRecordError>>) -> Result<(), Failure> {
///     result.map(drop).map_err(|error| {
///         let verdict = sdk_error(&error);
///         Failure::new(error, verdict)
///     })
/// }
/// ```
pub fn sdk_error<E, R>(error: &SdkError<E, R>) -> Verdict
where
    E: ProvideErrorMetadata,
    R: Any,
{
    let response = error
        .raw_response()
        .and_then(|raw| (raw as &dyn Any).downcast_ref::<HttpResponse>());
    let verdict = match error {
        SdkError::ConstructionFailure(_) => mendable(),
        SdkError::TimeoutError(_) | SdkError::ResponseError(_) => outage(),
        SdkError::DispatchFailure(failure) => failure.as_connector_error().map_or_else(outage, connector),
        SdkError::ServiceError(error) => service(error.err().meta(), response),
        _ => Verdict::transient(),
    };
    match response.and_then(retry_after) {
        Some(delay) if verdict.class() == Class::Transient => verdict.with_retry_after(delay),
        _ => verdict,
    }
}

fn outage() -> Verdict {
    Verdict::new(Class::Transient, Scope::Dependency)
}

/// Returns the verdict on an error that an operator can fix, such as a request that could not even be made.
/// Mostly the configuration is at fault, sometimes the request that the processor made from this record. The
/// scope is right for both: the record is held while nothing else succeeds, and dead-lettered once other
/// records succeed.
fn mendable() -> Verdict {
    Verdict::new(Class::Permanent, Scope::Dependency)
}

/// Returns the verdict on a connector's error. Kind `other` is transient, although the SDK does not retry it.
/// That kind stands for credentials and endpoints that did not resolve, and for every connection error that
/// the HTTP client cannot name.
fn connector(error: &ConnectorError) -> Verdict {
    if error.is_user() { mendable() } else { outage() }
}

fn service(error: &ErrorMetadata, response: Option<&HttpResponse>) -> Verdict {
    let code = error.code().unwrap_or_default();
    let status = response.map_or(0, |response| response.status().as_u16());
    let verdict = match (aws_code(code), status) {
        // A service that reports a fault of its own may recover, whatever the code: Lambda sends
        // `KMSAccessDeniedException` with a 502.
        (_, 500..=599 | 408 | 429) => outage(),
        (Some(verdict), _) => return verdict,
        (None, 401 | 403 | 407) => mendable(),
        (None, 400..=499) => Verdict::new(Class::Permanent, Scope::Unknown),
        (None, _) => Verdict::transient(),
    };
    with_aws_code(verdict, code)
}

fn retry_after(response: &HttpResponse) -> Option<Duration> {
    let millis = response.headers().get("x-amz-retry-after")?.parse().ok()?;
    Some(Duration::from_millis(millis))
}

/// A classifier that knows the errors of one operation `E` of any AWS service; see [`sdk_errors`].
pub struct SdkErrors<E>(PhantomData<fn(E)>);

/// Creates a classifier for the errors of an operation of another service:
/// `.classifier(sdk_errors::<PutItemError>())`.
///
/// Without this classifier, the engine knows only those parts of an `SdkError<PutItemError>` that have the
/// same type in every service: failed connections, and errors that the service's model does not name. Any
/// other error is transient, of unknown scope. The operations of the Kinesis client need no such classifier.
///
/// The classifier finds `SdkError<E>` and `E` anywhere in the chain of sources. An error that the processor
/// marked ([`MarkFailure`](crate::MarkFailure)) keeps the verdict of its mark.
pub const fn sdk_errors<E>() -> SdkErrors<E>
where
    E: Error + ProvideErrorMetadata + 'static,
{
    SdkErrors(PhantomData)
}

impl<E> Classify for SdkErrors<E>
where
    E: Error + ProvideErrorMetadata + 'static,
{
    fn classify(&self, error: &(dyn Error + 'static)) -> Option<Verdict> {
        match mark(error) {
            Some(_) => None,
            None => chain(error).find_map(operation::<E>),
        }
    }
}

impl<E> fmt::Debug for SdkErrors<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SdkErrors").field(&type_name::<E>()).finish()
    }
}

/// Returns the verdict on one error of a chain, if the error belongs to the SDK.
pub(super) fn known(error: &(dyn Error + 'static)) -> Option<Verdict> {
    if let Some(error) = error.downcast_ref::<ErrorMetadata>() {
        return metadata(error);
    }
    if let Some(error) = error.downcast_ref::<ConnectorError>() {
        return Some(connector(error));
    }
    if error.is::<BuildError>() || error.is::<SerializationError>() {
        return Some(mendable());
    }
    OPERATIONS.iter().find_map(|known| known(error)).or_else(|| {
        EXCEPTIONS
            .iter()
            .find_map(|(is, code)| is(error).then(|| aws_code(code))?)
    })
}

/// Returns the verdict on an error with a code. An error without a code is skipped: an unhandled error keeps
/// its details in its source.
fn metadata(error: &ErrorMetadata) -> Option<Verdict> {
    error.code().map(|_| service(error, None))
}

fn operation<E>(error: &(dyn Error + 'static)) -> Option<Verdict>
where
    E: Error + ProvideErrorMetadata + 'static,
{
    if let Some(error) = error.downcast_ref::<SdkError<E, HttpResponse>>() {
        return Some(sdk_error(error));
    }
    metadata(error.downcast_ref::<E>()?.meta())
}

fn event_stream(error: &(dyn Error + 'static)) -> Option<Verdict> {
    type Event = kinesis::SubscribeToShardEventStreamError;
    if let Some(error) = error.downcast_ref::<SdkError<Event, RawMessage>>() {
        return match error {
            // The code is in the header of the frame: the SDK keeps it as the type of the exception only.
            SdkError::ServiceError(event) => metadata(event.err().meta()),
            _ => Some(sdk_error(error)),
        };
    }
    metadata(error.downcast_ref::<Event>()?.meta())
}

fn is<E: Error + 'static>(error: &(dyn Error + 'static)) -> bool {
    error.is::<E>()
}

type Is = fn(&(dyn Error + 'static)) -> bool;
type Known = fn(&(dyn Error + 'static)) -> Option<Verdict>;

/// The errors of the Kinesis client's operations on streams and their records.
const OPERATIONS: &[Known] = {
    use aws_sdk_kinesis::operation as op;
    &[
        operation::<op::create_stream::CreateStreamError>,
        operation::<op::decrease_stream_retention_period::DecreaseStreamRetentionPeriodError>,
        operation::<op::delete_stream::DeleteStreamError>,
        operation::<op::deregister_stream_consumer::DeregisterStreamConsumerError>,
        operation::<op::describe_limits::DescribeLimitsError>,
        operation::<op::describe_stream::DescribeStreamError>,
        operation::<op::describe_stream_consumer::DescribeStreamConsumerError>,
        operation::<op::describe_stream_summary::DescribeStreamSummaryError>,
        operation::<op::get_records::GetRecordsError>,
        operation::<op::get_shard_iterator::GetShardIteratorError>,
        operation::<op::increase_stream_retention_period::IncreaseStreamRetentionPeriodError>,
        operation::<op::list_shards::ListShardsError>,
        operation::<op::list_stream_consumers::ListStreamConsumersError>,
        operation::<op::list_streams::ListStreamsError>,
        operation::<op::merge_shards::MergeShardsError>,
        operation::<op::put_record::PutRecordError>,
        operation::<op::put_records::PutRecordsError>,
        operation::<op::register_stream_consumer::RegisterStreamConsumerError>,
        operation::<op::split_shard::SplitShardError>,
        operation::<op::subscribe_to_shard::SubscribeToShardError>,
        operation::<op::update_shard_count::UpdateShardCountError>,
        operation::<op::update_stream_mode::UpdateStreamModeError>,
        operation::<aws_sdk_kinesis::Error>,
        event_stream,
    ]
};

/// The exceptions inside the errors of operations: a wrapper may hide the outer error. The type of an
/// exception stands for its code, as an exception that the operation's own model lacks comes without
/// metadata.
const EXCEPTIONS: &[(Is, &str)] = &[
    (is::<kinesis::AccessDeniedException>, "AccessDeniedException"),
    (
        is::<kinesis::DryRunOperationException>,
        "DryRunOperationException",
    ),
    (
        is::<kinesis::ExpiredIteratorException>,
        "ExpiredIteratorException",
    ),
    (
        is::<kinesis::ExpiredNextTokenException>,
        "ExpiredNextTokenException",
    ),
    (
        is::<kinesis::InternalFailureException>,
        "InternalFailureException",
    ),
    (
        is::<kinesis::InvalidArgumentException>,
        "InvalidArgumentException",
    ),
    (
        is::<kinesis::KmsAccessDeniedException>,
        "KMSAccessDeniedException",
    ),
    (is::<kinesis::KmsDisabledException>, "KMSDisabledException"),
    (
        is::<kinesis::KmsInvalidStateException>,
        "KMSInvalidStateException",
    ),
    (is::<kinesis::KmsNotFoundException>, "KMSNotFoundException"),
    (is::<kinesis::KmsOptInRequired>, "KMSOptInRequired"),
    (is::<kinesis::KmsThrottlingException>, "KMSThrottlingException"),
    (is::<kinesis::LimitExceededException>, "LimitExceededException"),
    (
        is::<kinesis::ProvisionedThroughputExceededException>,
        "ProvisionedThroughputExceededException",
    ),
    (is::<kinesis::ResourceInUseException>, "ResourceInUseException"),
    (
        is::<kinesis::ResourceNotFoundException>,
        "ResourceNotFoundException",
    ),
    (is::<kinesis::ValidationException>, "ValidationException"),
];
