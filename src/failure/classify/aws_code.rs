//! AWS error codes: one name space, shared by every service.

use aws_runtime::retries::classifiers::{THROTTLING_ERRORS, TRANSIENT_ERRORS};

use crate::failure::{Class, Scope, Verdict};

// Names are listed without the `Exception` that some protocols append.

/// The codes for which another attempt may succeed, although the SDK's own lists (also checked) lack them.
const TRANSIENT: &[&str] = &[
    // A fault of the service itself. A whole response has a 5xx status, an entry of a batch has none.
    "InternalFailure",
    "InternalError",
    "InternalServer",
    "InternalServerError",
    "InternalService",
    "InternalServiceError",
    "KMSInternal",
    "ServiceUnavailable",
    // A conflict that passes by itself: the stream is being changed (Kinesis), or another writer was first.
    "ResourceInUse",
    "ResourceNotReady",
    "ConcurrentModification",
    "ConditionalRequestConflict",
    "OperationAborted",
    "ReplicatedWriteConflict",
    "TransactionConflict",
    // Passes after a refresh: the owner of the iterator, token or clock gets a new one.
    "ExpiredIterator",
    "ExpiredNextToken",
    "ExpiredToken",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "TokenRefreshRequired",
    "TooManyRequests",
];

/// The codes of problems that an operator can fix: a permission, a key, a name, a limit.
const CONFIGURATION: &[&str] = &[
    "AllAccessDisabled",
    "AuthFailure",
    "AuthorizationError",
    "AuthorizationHeaderMalformed",
    "DryRunOperation",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidAction",
    "InvalidAddress",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "InvalidSignature",
    "InvalidToken",
    "MissingAuthenticationToken",
    "NoSuchBucket",
    "NonExistentQueue",
    "NotAuthorized",
    "NotFound",
    "NotSignedUp",
    "OptInRequired",
    "OverLimit",
    "PermanentRedirect",
    "QueueDeletedRecently",
    "QueueDoesNotExist",
    "ResourceNotFound",
    "SignatureDoesNotMatch",
    "Unauthorized",
    "UnauthorizedOperation",
    "UnknownOperation",
    "UnrecognizedClient",
    "UnsupportedOperation",
];

/// The codes of a request that is wrong because of this record, or whose condition does not hold.
const RECORD: &[&str] = &[
    "BatchEntryIdsNotDistinct",
    "BatchRequestTooLong",
    "ConditionalCheckFailed",
    "DuplicateItem",
    "EmptyBatchRequest",
    "EntityTooLarge",
    "IdempotentParameterMismatch",
    "InvalidAttributeName",
    "InvalidAttributeValue",
    "InvalidBatchEntryId",
    "InvalidMessageContents",
    "InvalidParameter",
    "InvalidParameterCombination",
    "InvalidParameterValue",
    "InvalidRequest",
    "ItemCollectionSizeLimitExceeded",
    "MissingParameter",
    "PreconditionFailed",
    "RequestTooLarge",
    "Serialization",
    "TooManyEntriesInBatchRequest",
    "Validation",
    "ValidationError",
];

/// Returns the verdict on an AWS error code, whichever service sent it; `None` for an unknown code.
///
/// The code may also come from an entry of a batch (`PutRecords`, `SendMessageBatch`). A namespace before the
/// code (`com.amazonaws…#`, `AWS.SimpleQueueService.`) and a URL behind it are ignored. A trailing
/// `Exception` makes no difference.
///
/// - Throttling, faults of the service, and conflicts that pass by themselves: transient, dependency.
/// - Permissions, KMS keys, names that do not exist: permanent, dependency.
/// - Invalid arguments, and a condition that does not hold: permanent, record.
///
/// Throttling and timeouts are the codes in the SDK's own lists, and codes that these lists lack. The most
/// important one is `KMSThrottlingException`: it comes with status 400, so the SDK does not retry.
///
/// ```
/// use redrive::{Class, Scope, classify::aws_code};
///
/// let verdict = aws_code("KMSThrottlingException").expect("a code it knows");
/// assert_eq!((verdict.class(), verdict.scope()), (Class::Transient, Scope::Dependency));
/// assert_eq!(verdict.code(), Some("KMSThrottlingException"));
/// ```
pub fn aws_code(code: &str) -> Option<Verdict> {
    let (class, scope) = meaning(bare(code))?;
    Some(with_aws_code(Verdict::new(class, scope), code))
}

/// Returns the verdict with this code, if the text looks like a code. Codes appear where error texts do not,
/// so an arbitrary text from a server must not get there.
pub(super) fn with_aws_code(verdict: Verdict, code: &str) -> Verdict {
    let code = bare(code);
    let looks_like_one = (1..=128).contains(&code.len())
        && code
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if looks_like_one {
        verdict.with_code(code.to_owned())
    } else {
        verdict
    }
}

fn bare(code: &str) -> &str {
    let code = code.split_once(':').map_or(code, |(code, _url)| code);
    let code = code.rsplit_once('#').map_or(code, |(_namespace, code)| code);
    code.strip_prefix("AWS.SimpleQueueService.").unwrap_or(code)
}

fn stem(code: &str) -> &str {
    code.strip_suffix("Exception").unwrap_or(code)
}

fn meaning(code: &str) -> Option<(Class, Scope)> {
    let code = stem(code);
    let listed = |list: &[&str]| list.iter().any(|name| stem(name) == code);
    let is_kms = code
        .get(..3)
        .is_some_and(|prefix| prefix.eq_ignore_ascii_case("kms"));

    if listed(THROTTLING_ERRORS) || listed(TRANSIENT_ERRORS) || listed(TRANSIENT) || code.contains("Throttl")
    {
        Some((Class::Transient, Scope::Dependency))
    } else if code == "TransactionCanceled" {
        // The code does not contain DynamoDB's reasons, which range from a conflict to a failed condition. A
        // retry is right for a conflict and harmless for a failed condition.
        Some((Class::Transient, Scope::Unknown))
    } else if is_kms || code.starts_with("AccessDenied") || listed(CONFIGURATION) {
        Some((Class::Permanent, Scope::Dependency))
    } else if code.starts_with("InvalidArgument") || listed(RECORD) {
        Some((Class::Permanent, Scope::Record))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_looks_like_a_code_is_kept() {
        let kept = |code: &str| {
            with_aws_code(Verdict::transient(), code)
                .code()
                .map(str::to_owned)
        };
        assert_eq!(kept("Some.New_Code-2").as_deref(), Some("Some.New_Code-2"));
        let long = "x".repeat(129);
        for no_code in ["", "card 4711 declined", "{\"name\"", "naïve", &long] {
            assert_eq!(kept(no_code), None, "{no_code:?}");
        }
    }

    #[test]
    fn namespaces_and_urls_are_passed_over() {
        for code in [
            "com.amazonaws.kinesis.v20131202#ExpiredIteratorException",
            "ExpiredIteratorException:http://internal.amazon.com/coral/",
            "ExpiredIterator",
        ] {
            let verdict = aws_code(code).expect(code);
            assert_eq!(verdict.class(), Class::Transient, "{code}");
            assert!(
                verdict
                    .code()
                    .is_some_and(|code| code.starts_with("ExpiredIterator")),
                "{code}"
            );
        }
        let verdict = aws_code("AWS.SimpleQueueService.NonExistentQueue").expect("known");
        assert_eq!(verdict.code(), Some("NonExistentQueue"));
    }

    #[test]
    fn no_code_stands_in_two_lists() {
        let mut all = [TRANSIENT, CONFIGURATION, RECORD].concat();
        all.extend(THROTTLING_ERRORS.iter().map(|code| stem(code)));
        let lists = all.len();
        all.sort_unstable();
        all.dedup();
        // The SDK lists `Throttling` and `RequestThrottled` both with and without `Exception`, and
        // `TooManyRequests` is in its list as well.
        assert_eq!(lists - all.len(), 3);
    }
}
