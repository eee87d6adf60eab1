//! Tests of AWS errors: error codes, and the errors that an SDK client returns.

use std::io;
use std::time::Duration;

use redrive::classify::{aws_code, sdk_error, sdk_errors};
use redrive::{Class, Classify, MarkFailure, Scope, classify::Verdict};

use super::client::{self, Answer};
use super::{MENDABLE, RECORD, TRANSIENT, layers, pair, standard};

/// Covers every error code of the Kinesis API, and the codes of DynamoDB and SQS that a handler or a sink
/// meets.
#[test]
fn error_codes_mean_what_the_services_document() {
    let table = [
        (
            TRANSIENT,
            &[
                "ProvisionedThroughputExceededException",
                "LimitExceededException",
                "LimitExceeded",
                "KMSThrottlingException",
                "InternalFailureException",
                "InternalFailure",
                "ResourceInUseException",
                "ExpiredIteratorException",
                "ExpiredNextTokenException",
                "ExpiredToken",
                "ExpiredTokenException",
                "RequestLimitExceeded",
                "ThrottlingException",
                "InternalServerError",
                "InternalServerException",
                "InternalError",
                "ServiceUnavailable",
                "ServiceUnavailableException",
                "TransactionConflictException",
                "RequestThrottled",
                "KmsThrottled",
                "KMS.ThrottlingException",
            ][..],
        ),
        (
            MENDABLE,
            &[
                "AccessDeniedException",
                "AccessDenied",
                "KMSAccessDeniedException",
                "KMSDisabledException",
                "KMSInvalidStateException",
                "KMSNotFoundException",
                "KMSOptInRequired",
                "KmsDisabled",
                "KmsInvalidKeyUsage",
                "UnrecognizedClientException",
                "InvalidSignatureException",
                "IncompleteSignature",
                "MissingAuthenticationToken",
                "OptInRequired",
                "ResourceNotFoundException",
                "QueueDoesNotExist",
                "AWS.SimpleQueueService.NonExistentQueue",
                "OverLimit",
            ],
        ),
        (
            RECORD,
            &[
                "InvalidArgumentException",
                "ValidationException",
                "ConditionalCheckFailedException",
                "InvalidMessageContents",
                "BatchRequestTooLong",
                "AWS.SimpleQueueService.BatchRequestTooLong",
            ],
        ),
        (
            (Class::Transient, Scope::Unknown),
            &["TransactionCanceledException"],
        ),
    ];
    for (expected, codes) in table {
        for &code in codes {
            let verdict = aws_code(code).expect(code);
            assert_eq!(pair(&verdict), expected, "{code}");
            assert!(verdict.code().is_some_and(|kept| code.ends_with(kept)), "{code}");
        }
    }
    for unknown in ["", "Exception", "SomethingNewException", "the card was declined"] {
        assert_eq!(aws_code(unknown), None, "{unknown:?}");
    }
}

/// Covers the errors of a handler that calls Kinesis and uses `?`.
#[tokio::test]
async fn kinesis_errors_are_classified_behind_any_wrapper() {
    let table = [
        (TRANSIENT, Answer::Refused),
        (
            TRANSIENT,
            Answer::Status(400, r#"{"__type":"KMSThrottlingException"}"#),
        ),
        (
            TRANSIENT,
            Answer::Status(500, r#"{"__type":"InternalFailureException"}"#),
        ),
        (
            MENDABLE,
            Answer::Status(400, r#"{"__type":"AccessDeniedException"}"#),
        ),
        (
            MENDABLE,
            Answer::Status(400, r#"{"__type":"UnrecognizedClientException"}"#),
        ),
        (
            RECORD,
            Answer::Status(400, r#"{"__type":"InvalidArgumentException"}"#),
        ),
    ];
    for (expected, answer) in table {
        let client = client::kinesis(answer);
        for (layer, wrap) in layers::ALL {
            let error = client
                .get_records()
                .shard_iterator("i")
                .send()
                .await
                .expect_err("fails");
            let error = wrap(error.into());
            assert_eq!(
                standard(&*error).as_ref().map(pair),
                Some(expected),
                "{layer}: {answer:?}"
            );

            let error = client.list_streams().send().await.expect_err("fails");
            let error = wrap(error.into_service_error().into());
            assert_eq!(
                standard(&*error).as_ref().map(pair),
                Some(expected),
                "{layer}: {answer:?} as the operation's error"
            );
        }
        // `aws_sdk_kinesis::Error` hides its source. Behind a wrapper that hides it too, the error cannot be
        // found.
        for (layer, wrap) in layers::SHOWING {
            let error = client.list_shards().send().await.expect_err("fails");
            let error = wrap(aws_sdk_kinesis::Error::from(error).into());
            assert_eq!(
                standard(&*error).as_ref().map(pair),
                Some(expected),
                "{layer}: {answer:?} as the service's error"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn timeouts_and_unsent_requests_are_classified() {
    use aws_sdk_kinesis::Client;
    use aws_sdk_kinesis::config::timeout::TimeoutConfig;
    use aws_sdk_kinesis::error::SdkError;
    use aws_smithy_async::rt::sleep::TokioSleep;

    let timeout = TimeoutConfig::builder()
        .operation_timeout(Duration::from_secs(1))
        .build();
    let slow = client::kinesis(Answer::Never);
    let slow = Client::from_conf(
        slow.config()
            .to_builder()
            .timeout_config(timeout)
            .sleep_impl(TokioSleep::new())
            .build(),
    );
    let error = slow.list_shards().send().await.expect_err("times out");
    assert!(matches!(error, SdkError::TimeoutError(_)), "{error:?}");
    assert_eq!(standard(&error).as_ref().map(pair), Some(TRANSIENT));

    // Credentials that do not load are a dispatch failure of the kind "other", which the SDK does not retry.
    // A wrong endpoint is the same kind of failure.
    let unsigned = Client::from_conf(client::config(Answer::Refused).build());
    let error = unsigned.list_shards().send().await.expect_err("unsigned");
    assert!(
        matches!(&error, SdkError::DispatchFailure(f) if f.is_other() && f.as_other().is_none()),
        "{error:?}"
    );
    assert_eq!(standard(&error).as_ref().map(pair), Some(TRANSIENT));

    // A request that cannot be built.
    let error = aws_sdk_kinesis::types::PutRecordsRequestEntry::builder()
        .build()
        .expect_err("no data");
    assert_eq!(standard(&error).as_ref().map(pair), Some(MENDABLE));
    let error = SdkError::<aws_sdk_kinesis::operation::put_records::PutRecordsError>::from(error);
    assert!(matches!(error, SdkError::ConstructionFailure(_)), "{error:?}");
    assert_eq!(standard(&error).as_ref().map(pair), Some(MENDABLE));
}

#[tokio::test]
async fn verdict_has_the_code_and_the_delay_of_the_service() {
    let send = async |answer| {
        let result = client::kinesis(answer).list_shards().send().await;
        sdk_error(&result.expect_err("fails"))
    };
    let verdict = send(Answer::Status(400, r#"{"__type":"LimitExceededException"}"#)).await;
    assert_eq!(verdict.code(), Some("LimitExceededException"));
    assert_eq!(verdict.retry_after(), Some(Duration::from_millis(1_500)));

    let verdict = send(Answer::Status(400, r#"{"__type":"AccessDeniedException"}"#)).await;
    assert_eq!(verdict.code(), Some("AccessDeniedException"));
    assert_eq!(verdict.retry_after(), None, "a permanent error has no delay");

    let verdict = send(Answer::Status(400, r#"{"__type":"card 4711 of Alice"}"#)).await;
    assert_eq!(verdict.code(), None, "the text is not an error code");
    assert_eq!(pair(&verdict), (Class::Permanent, Scope::Unknown));
}

#[test]
fn event_stream_errors_are_classified_by_code() {
    use aws_sdk_kinesis::types::error::{
        KmsAccessDeniedException, KmsThrottlingException, ResourceInUseException, ResourceNotFoundException,
        SubscribeToShardEventStreamError as Event,
    };
    use aws_smithy_runtime_api::client::result::SdkError;
    use aws_smithy_types::error::ErrorMetadata;
    use aws_smithy_types::event_stream::RawMessage;

    let throttled = KmsThrottlingException::builder()
        .meta(ErrorMetadata::builder().code("KMSThrottlingException").build())
        .build();
    let error = SdkError::service_error(
        Event::KmsThrottlingException(throttled),
        RawMessage::Invalid(None),
    );
    assert_eq!(pair(&sdk_error(&error)), TRANSIENT);
    assert_eq!(standard(&error).as_ref().map(pair), Some(TRANSIENT));

    // The SDK reads the code of a real event from its header, and keeps only the type of the exception.
    let denied = KmsAccessDeniedException::builder().message("no access").build();
    let error = SdkError::service_error(
        Event::KmsAccessDeniedException(denied.clone()),
        RawMessage::Invalid(None),
    );
    let verdict = standard(&error).expect("known");
    assert_eq!(Some(pair(&verdict)), standard(&denied).as_ref().map(pair));
    assert_eq!(verdict.class(), Class::Permanent);
    let code = |event| {
        let error = SdkError::service_error(event, RawMessage::Invalid(None));
        standard(&error)?.code().map(str::to_owned)
    };
    let in_use = ResourceInUseException::builder().build();
    let gone = ResourceNotFoundException::builder().build();
    assert_eq!(
        code(Event::ResourceInUseException(in_use)).as_deref(),
        Some("ResourceInUseException")
    );
    assert_eq!(
        code(Event::ResourceNotFoundException(gone)).as_deref(),
        Some("ResourceNotFoundException")
    );
}

/// An operation error of another service, as its SDK crate generates it.
mod other_service {
    use aws_smithy_types::error::ErrorMetadata;
    use aws_smithy_types::error::metadata::ProvideErrorMetadata;

    #[derive(Debug, thiserror::Error)]
    #[error("the condition does not hold")]
    pub(super) struct PutItemError(pub(super) ErrorMetadata);

    impl ProvideErrorMetadata for PutItemError {
        fn meta(&self) -> &ErrorMetadata {
            &self.0
        }
    }
}

#[test]
fn sdk_errors_classifies_another_service() {
    use aws_smithy_runtime_api::client::result::SdkError;
    use aws_smithy_types::error::ErrorMetadata;
    use other_service::PutItemError;

    let failed = || {
        let meta = ErrorMetadata::builder().code("ConditionalCheckFailedException");
        SdkError::service_error(PutItemError(meta.build()), client::response(400, ""))
    };
    let taught = sdk_errors::<PutItemError>();
    for (layer, wrap) in layers::ALL {
        // A wrapper may hide the `SdkError`. Its source, the error of the operation, is enough.
        let error = wrap(failed().into());
        assert_eq!(
            taught.classify(&*error).as_ref().map(pair),
            Some(RECORD),
            "{layer}"
        );
        assert_eq!(standard(&*error), None, "{layer}");
    }
    let marked = Err::<(), _>(failed()).transient().expect_err("fails");
    assert_eq!(taught.classify(&marked), None, "the mark decides");
    assert_eq!(standard(&marked), Some(Verdict::transient()));
    assert_eq!(taught.classify(&io::Error::other("unknown")), None);
}
