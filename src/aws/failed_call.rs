//! Failed AWS calls: the task, the service, and what an operator can do about the failure.

use std::error::Error;
use std::fmt;

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use super::Place;
use crate::failure::{BoxError, chain, text};

/// A failed call of an AWS service.
///
/// The text states the task, the place and the operation. For a failure that only an operator can fix, it
/// also states what to do:
/// `cannot list the shards of "orders" in us-east-1 (ListShards): access denied; the role needs kinesis:ListShards`.
#[derive(Debug)]
pub(crate) struct FailedCall {
    task: String,
    /// The IAM action, such as `kinesis:ListShards`.
    action: &'static str,
    place: String,
    cause: Cause,
    code: Option<String>,
    source: BoxError,
}

/// The known cause of a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    NoRegion,
    NoCredentials,
    /// The credentials are unknown, expired or not usable.
    BadCredentials,
    AccessDenied,
    /// The resource that the task names does not exist.
    NotFound,
    Other,
}

impl FailedCall {
    /// Describes a failed call. `task` completes the sentence "cannot …"; `action` is the IAM action that the
    /// call needs.
    pub(crate) fn new<E, R>(
        place: &Place,
        task: impl Into<String>,
        action: &'static str,
        error: SdkError<E, R>,
    ) -> Self
    where
        E: Error + ProvideErrorMetadata + Send + Sync + 'static,
        R: fmt::Debug + Send + Sync + 'static,
    {
        let cause = match &error {
            SdkError::ServiceError(service) => Cause::of_code(service.err().code()),
            _ if place.has_no_region() => Cause::NoRegion,
            error => Cause::of_chain(error),
        };
        FailedCall {
            task: task.into(),
            action,
            place: place.to_string(),
            cause,
            code: error.code().map(str::to_owned),
            // The wrapper says no more than "service error" or "dispatch failure".
            source: error.into_source().unwrap_or_else(Into::into),
        }
    }

    /// Returns true if another call gives the same answer until an operator changes something.
    pub(crate) fn is_refused(error: &(dyn Error + 'static)) -> bool {
        Self::find(error).is_some_and(|call| call.cause != Cause::Other)
    }

    /// Returns true if the caller lacks the permission for the call.
    #[cfg(feature = "dynamodb")]
    pub(crate) fn is_denied(&self) -> bool {
        self.cause == Cause::AccessDenied
    }

    /// Returns the service's error code.
    pub(crate) fn code<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a str> {
        Self::find(error)?.code.as_deref()
    }

    fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a FailedCall> {
        chain(error).find_map(|error| error.downcast_ref())
    }

    fn operation(&self) -> &'static str {
        match self.action {
            // This is the only call whose permission has another name.
            "s3:ListBucket" => "HeadBucket",
            action => action.split_once(':').map_or(action, |(_, operation)| operation),
        }
    }
}

impl Cause {
    fn of_chain(error: &(dyn Error + 'static)) -> Self {
        let credentials = chain(error).find_map(|error| error.downcast_ref::<CredentialsError>());
        match credentials {
            Some(CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_)) => {
                Cause::NoCredentials
            }
            _ => Cause::Other,
        }
    }

    fn of_code(code: Option<&str>) -> Self {
        let code = code.unwrap_or_default();
        // `AWS.SimpleQueueService.NonExistentQueue`, `com.amazonaws…#ResourceNotFoundException`
        let code = code.rsplit(['.', '#']).next().unwrap_or_default();
        match code.strip_suffix("Exception").unwrap_or(code) {
            "AccessDenied" | "AuthorizationError" | "KMSAccessDenied" | "Forbidden" => Cause::AccessDenied,
            "ExpiredToken"
            | "IncompleteSignature"
            | "InvalidAccessKeyId"
            | "InvalidClientTokenId"
            | "InvalidSignature"
            | "MissingAuthenticationToken"
            | "SignatureDoesNotMatch"
            | "UnrecognizedClient" => Cause::BadCredentials,
            "NoSuchBucket" | "NonExistentQueue" | "NotFound" | "QueueDoesNotExist" | "ResourceNotFound" => {
                Cause::NotFound
            }
            _ => Cause::Other,
        }
    }
}

impl fmt::Display for FailedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.task)?;
        if !self.place.is_empty() {
            write!(f, " {}", self.place)?;
        }
        write!(f, " ({})", self.operation())?;
        match self.cause {
            Cause::NoRegion => f.write_str(
                ": the client has no region; set AWS_REGION, or give the profile a region",
            ),
            Cause::NoCredentials => f.write_str(
                ": no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, choose a profile with \
                 AWS_PROFILE, or give the machine a role",
            ),
            Cause::BadCredentials => f.write_str(
                ": the credentials are not accepted; check that they are current and of this account, and the \
                 machine's clock",
            ),
            Cause::AccessDenied => write!(f, ": access denied; the role needs {}", self.action),
            Cause::NotFound => {
                f.write_str(": it does not exist; create it, or check the name, the region and the account")
            }
            Cause::Other => Ok(()),
        }
    }
}

impl Error for FailedCall {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let error: &(dyn Error + 'static) = &*self.source;
        // An operation's error repeats the text of the exception that it contains, which would be printed
        // twice.
        match error.source() {
            Some(exception) if text(exception) == text(error) => Some(exception),
            _ => Some(error),
        }
    }
}
