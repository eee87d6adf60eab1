//! Comparison with the retry classifiers of the SDK, on the same errors.

use aws_runtime::retries::classifiers::{AwsErrorCodeClassifier, THROTTLING_ERRORS, TRANSIENT_ERRORS};
use aws_smithy_runtime::client::retries::classifiers::{
    HttpStatusCodeClassifier, TransientErrorClassifier, run_classifiers_on_ctx,
};
use aws_smithy_runtime_api::client::interceptors::context::{Error, Input, InterceptorContext, Output};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse, OrchestratorError};
use aws_smithy_runtime_api::client::result::{ConnectorError, SdkError};
use aws_smithy_runtime_api::client::retries::classifiers::{RetryAction, SharedRetryClassifier};
use aws_smithy_types::error::ErrorMetadata;
use aws_smithy_types::retry::ErrorKind;
use redrive::Class;
use redrive::classify::sdk_error;

use super::client;

/// Checks that every error that the SDK retries is transient. The list at the end names the errors that only
/// this crate retries. The test fails when an upgrade of the SDK changes its classification.
#[test]
fn every_error_that_the_sdk_retries_is_transient() {
    let mut cases = vec![];
    for &code in THROTTLING_ERRORS.iter().chain(TRANSIENT_ERRORS) {
        cases.push((format!("listed {code}"), answered(400, Some(code))));
    }
    let codes = [
        "KMSThrottlingException",
        "KMSDisabledException",
        "InternalFailureException",
        "ResourceInUseException",
        "ResourceNotFoundException",
        "ExpiredIteratorException",
        "ExpiredNextTokenException",
        "ExpiredTokenException",
        "TransactionConflictException",
        "TransactionCanceledException",
        "RequestTimeTooSkewed",
        "AccessDeniedException",
        "InvalidArgumentException",
        "SomethingNewException",
    ];
    for code in codes {
        cases.push((format!("code {code}"), answered(400, Some(code))));
        cases.push((format!("500 with {code}"), answered(500, Some(code))));
    }
    for status in [
        200, 301, 400, 401, 403, 404, 408, 409, 413, 429, 500, 501, 502, 503, 504, 505, 599,
    ] {
        cases.push((format!("status {status}"), answered(status, None)));
    }
    let source = || "the reason".into();
    let connector = |error| (Stage::Transmission, OrchestratorError::connector(error));
    cases.extend(
        [
            ("connector timeout", connector(ConnectorError::timeout(source()))),
            ("connector io", connector(ConnectorError::io(source()))),
            ("connector user", connector(ConnectorError::user(source()))),
            (
                "connector other",
                connector(ConnectorError::other(source(), None)),
            ),
            (
                "connector other, transient",
                connector(ConnectorError::other(source(), Some(ErrorKind::TransientError))),
            ),
            (
                "connector other, client",
                connector(ConnectorError::other(source(), Some(ErrorKind::ClientError))),
            ),
            (
                "before the request leaves",
                (Stage::Transmission, OrchestratorError::other(source())),
            ),
            (
                "timeout",
                (Stage::Transmission, OrchestratorError::timeout(source())),
            ),
            (
                "construction",
                (Stage::Construction, OrchestratorError::other(source())),
            ),
            (
                "unreadable response",
                (
                    Stage::Response(Box::new(client::response(200, ""))),
                    OrchestratorError::response(source()),
                ),
            ),
        ]
        .map(|(name, case)| (name.to_owned(), case)),
    );

    let mut only_ours = vec![];
    for (name, (stage, error)) in cases {
        let (sdk_retries, error) = fail(stage, error);
        let ours = sdk_error(&error);
        let we_retry = ours.class() == Class::Transient;
        assert!(
            we_retry || !sdk_retries,
            "{name}: the SDK retries this error, this crate does not"
        );
        if we_retry && !sdk_retries {
            only_ours.push(name);
        }
    }
    let expected = [
        "code KMSThrottlingException",
        "code InternalFailureException",
        "code ResourceInUseException",
        "code ExpiredIteratorException",
        "code ExpiredNextTokenException",
        "code ExpiredTokenException",
        "code TransactionConflictException",
        "code TransactionCanceledException",
        "code RequestTimeTooSkewed",
        // Neither a success nor a known error: nothing shows that the record is at fault.
        "status 200",
        "status 301",
        "status 408",
        "status 429",
        "status 501",
        "status 505",
        "status 599",
        "connector other",
        "before the request leaves",
    ];
    assert_eq!(only_ours, expected);
}

/// The phase of a request in which it fails.
#[derive(Debug)]
enum Stage {
    Construction,
    Transmission,
    Response(Box<HttpResponse>),
}

/// Returns whether the SDK would retry, and the error that it returns when it may not.
fn fail(stage: Stage, error: OrchestratorError<Error>) -> (bool, SdkError<ErrorMetadata, HttpResponse>) {
    let mut context = InterceptorContext::new(Input::doesnt_matter());
    if !matches!(stage, Stage::Construction) {
        context.enter_serialization_phase();
        drop(context.take_input());
        context.set_request(HttpRequest::empty());
        context.enter_before_transmit_phase();
        context.enter_transmit_phase();
    }
    if let Stage::Response(response) = stage {
        drop(context.take_request());
        context.set_response(*response);
        context.enter_before_deserialization_phase();
        context.enter_deserialization_phase();
        context.set_output_or_error(Ok(Output::doesnt_matter()));
        context.enter_after_deserialization_phase();
    }
    context.set_output_or_error(Err(error));
    let classifiers = [
        SharedRetryClassifier::new(TransientErrorClassifier::<ErrorMetadata>::new()),
        SharedRetryClassifier::new(HttpStatusCodeClassifier::default()),
        SharedRetryClassifier::new(AwsErrorCodeClassifier::<ErrorMetadata>::new()),
    ];
    let action = run_classifiers_on_ctx(classifiers.into_iter(), &context);
    let error = context.finalize().expect_err("the call fails");
    let error = error.map_service_error(|error| error.downcast().expect("metadata"));
    (matches!(action, RetryAction::RetryIndicated(_)), error)
}

fn answered(status: u16, code: Option<&str>) -> (Stage, OrchestratorError<Error>) {
    let mut metadata = ErrorMetadata::builder();
    if let Some(code) = code {
        metadata = metadata.code(code);
    }
    (
        Stage::Response(Box::new(client::response(status, ""))),
        OrchestratorError::operation(Error::erase(metadata.build())),
    )
}
