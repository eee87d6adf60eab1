//! The standard classifier, which the engine asks last.

use std::error::Error;
use std::io;
use std::num::{ParseFloatError, ParseIntError};
use std::str::Utf8Error;
use std::string::FromUtf8Error;

use super::Classify;
use crate::failure::{Class, Scope, Verdict, chain, mark, text, written};

/// Classifies marked errors, and errors of the standard library, tokio, serde_json, base64 and the AWS SDK.
///
/// The classifier walks over the error and its sources, outermost first. A mark anywhere in the chain
/// decides. Without a mark, the first known error decides:
///
/// | error | verdict |
/// |---|---|
/// | a [`Failure`](crate::Failure) | the verdict of the failure |
/// | [`io::Error`]: connections, timeouts, a full disk, too many open files | transient, dependency |
/// | [`io::Error`]: permission denied, a read-only file system | permanent, dependency |
/// | [`io::Error`]: invalid data or input | permanent, record |
/// | [`tokio::time::error::Elapsed`] | transient, scope unknown |
/// | a number, UTF-8, JSON or base64 that does not parse | permanent, record |
/// | JSON that could not be read or written | transient, dependency |
#[cfg_attr(
    feature = "kinesis",
    doc = "| errors of the AWS SDK | see [`sdk_error`](super::sdk_error) and [`aws_code`](super::aws_code) |"
)]
///
/// Data that does not parse is treated as the record's fault. If the answer of a service does not parse, mark
/// the error there with `.transient()`.
///
/// An `io::Error` that wraps another error is considered last, as the wrapped error is more precise.
#[derive(Debug, Clone, Copy, Default)]
pub struct StandardClassifier;

impl StandardClassifier {
    /// Creates the classifier.
    pub const fn new() -> Self {
        StandardClassifier
    }
}

impl StandardClassifier {
    /// Returns whether an error may be gone at the next attempt. An unknown error may be.
    #[cfg(any(feature = "kinesis", feature = "lambda"))]
    pub(crate) fn is_passing(error: &(dyn Error + 'static)) -> bool {
        let verdict = StandardClassifier.classify(error);
        verdict.is_none_or(|verdict| verdict.class() == Class::Transient)
    }
}

impl Classify for StandardClassifier {
    fn classify(&self, error: &(dyn Error + 'static)) -> Option<Verdict> {
        mark(error)
            .cloned()
            .or_else(|| chain(error).find_map(known))
            .or_else(|| chain(error).find_map(wrapper))
    }
}

fn known(error: &(dyn Error + 'static)) -> Option<Verdict> {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return match error.get_ref() {
            None => io_error(error),
            Some(_) => None,
        };
    }
    if error.is::<tokio::time::error::Elapsed>() {
        return Some(Verdict::transient());
    }
    if let Some(error) = error.downcast_ref::<serde_json::Error>() {
        return Some(if error.is_io() {
            Verdict::new(Class::Transient, Scope::Dependency)
        } else {
            Verdict::permanent()
        });
    }
    if error.is::<Utf8Error>()
        || error.is::<FromUtf8Error>()
        || error.is::<ParseIntError>()
        || error.is::<ParseFloatError>()
        || error.is::<base64::DecodeError>()
    {
        return Some(Verdict::permanent());
    }
    #[cfg(feature = "kinesis")]
    return super::aws::known(error);
    #[cfg(not(feature = "kinesis"))]
    None
}

/// Returns the verdict on an `io::Error` that wraps an unknown error.
fn wrapper(error: &(dyn Error + 'static)) -> Option<Verdict> {
    let error = error.downcast_ref::<io::Error>()?;
    let inner = error.get_ref()?;
    io_error(error).filter(|verdict| {
        // TLS libraries report a bad certificate as invalid data around an error of their own. That is no
        // record's fault: treated as one, an expired certificate would fill the dead-letter queue. Parsers of
        // data wrap a plain text.
        verdict.scope() != Scope::Record || is_text(inner)
    })
}

/// Returns whether the error was made from a text: only then its `Debug` output is the quoted text.
fn is_text(error: &(dyn Error + Send + Sync + 'static)) -> bool {
    written(format_args!("{error:?}")) == format!("{:?}", text(error))
}

fn io_error(error: &io::Error) -> Option<Verdict> {
    use io::ErrorKind::*;
    // ENFILE and EMFILE, too many open files, have no kind; the numbers are the same on every Unix.
    if cfg!(unix) && matches!(error.raw_os_error(), Some(23 | 24)) {
        return Some(Verdict::new(Class::Transient, Scope::Dependency));
    }
    match error.kind() {
        AddrInUse
        | AddrNotAvailable
        | BrokenPipe
        | ConnectionAborted
        | ConnectionRefused
        | ConnectionReset
        | HostUnreachable
        | Interrupted
        | NetworkDown
        | NetworkUnreachable
        | NotConnected
        | OutOfMemory
        | QuotaExceeded
        | ResourceBusy
        | StaleNetworkFileHandle
        | StorageFull
        | TimedOut
        | UnexpectedEof
        | WouldBlock
        | WriteZero => Some(Verdict::new(Class::Transient, Scope::Dependency)),
        PermissionDenied | ReadOnlyFilesystem => Some(Verdict::new(Class::Permanent, Scope::Dependency)),
        InvalidData | InvalidInput => Some(Verdict::permanent()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;

    const TRANSIENT: Option<(Class, Scope)> = Some((Class::Transient, Scope::Dependency));
    const MENDABLE: Option<(Class, Scope)> = Some((Class::Permanent, Scope::Dependency));
    const RECORD: Option<(Class, Scope)> = Some((Class::Permanent, Scope::Record));

    fn said(error: impl Error + 'static) -> Option<(Class, Scope)> {
        StandardClassifier::new()
            .classify(&error)
            .map(|verdict| (verdict.class(), verdict.scope()))
    }

    #[test]
    fn io_errors_are_known_by_their_kind() {
        use io::ErrorKind::*;
        let table = [
            (
                TRANSIENT,
                &[
                    ConnectionRefused,
                    ConnectionReset,
                    BrokenPipe,
                    TimedOut,
                    UnexpectedEof,
                    StorageFull,
                    NetworkUnreachable,
                ][..],
            ),
            (MENDABLE, &[PermissionDenied, ReadOnlyFilesystem]),
            (RECORD, &[InvalidData, InvalidInput]),
            (None, &[NotFound, AlreadyExists, Other]),
        ];
        for (expected, kinds) in table {
            for &kind in kinds {
                assert_eq!(said(io::Error::from(kind)), expected, "{kind}");
                assert_eq!(
                    said(io::Error::new(kind, "a text")),
                    expected,
                    "{kind} with a text"
                );
            }
        }
        #[cfg(unix)]
        assert_eq!(said(io::Error::from_raw_os_error(24)), TRANSIENT, "EMFILE");
    }

    #[test]
    fn what_an_io_error_wraps_knows_more_than_its_kind() {
        let cut = serde_json::from_str::<u8>("").expect_err("empty");
        assert!(cut.is_eof());
        let wrapped = io::Error::from(cut);
        assert_eq!(wrapped.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(said(wrapped), RECORD, "JSON that ends too soon never gets longer");

        #[derive(Debug, thiserror::Error)]
        #[error("invalid peer certificate: expired")]
        struct Certificate;
        let tls = io::Error::new(io::ErrorKind::InvalidData, Certificate);
        assert_eq!(said(tls), None, "no record's fault");
        let reset = io::Error::new(io::ErrorKind::ConnectionReset, Certificate);
        assert_eq!(
            said(reset),
            TRANSIENT,
            "the wrapped error says nothing, so its kind decides"
        );
    }

    #[test]
    fn what_does_not_parse_is_the_records_fault() {
        assert_eq!(said("x".parse::<u8>().expect_err("no number")), RECORD);
        assert_eq!(said("x".parse::<f32>().expect_err("no number")), RECORD);
        let bytes = vec![0xff];
        assert_eq!(
            said(String::from_utf8(bytes.clone()).expect_err("no UTF-8")),
            RECORD
        );
        assert_eq!(said(str::from_utf8(&bytes).expect_err("no UTF-8")), RECORD);
        let base64 = base64::prelude::BASE64_STANDARD.decode("?");
        assert_eq!(said(base64.expect_err("no base64")), RECORD);
        for json in ["{", "nonsense", "\"text\""] {
            assert_eq!(said(serde_json::from_str::<u8>(json).expect_err(json)), RECORD);
        }
    }

    #[test]
    fn json_that_cannot_be_read_is_not_bad_json() {
        struct Down;
        impl io::Read for Down {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        let error = serde_json::from_reader::<_, u8>(Down).expect_err("unreadable");
        assert_eq!(said(error), TRANSIENT);
    }

    #[tokio::test(start_paused = true)]
    async fn timeout_in_the_handler_is_transient_of_unknown_scope() {
        let elapsed = tokio::time::timeout(std::time::Duration::from_secs(1), std::future::pending::<()>());
        let verdict = StandardClassifier.classify(&elapsed.await.expect_err("elapsed"));
        assert_eq!(verdict, Some(Verdict::transient()));
    }
}
