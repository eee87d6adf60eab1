//! Failures: errors with a verdict on whether another attempt can succeed, and whose fault it is.

pub mod classify;

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::external::caught;

/// An error of any type, as processors return it.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// The class of a failure: can another attempt succeed?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Another attempt may succeed.
    Transient,
    /// Another attempt fails in the same way.
    Permanent,
}

impl Class {
    /// Returns the name used in dead letters, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Class::Transient => "transient",
            Class::Permanent => "permanent",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The scope of a failure: whose fault is it?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// This record is at fault: other records would succeed.
    Record,
    /// Something that the processor depends on is at fault: a database, a service, a permission. Other
    /// records fail as well.
    Dependency,
    /// The classifier does not know whose fault the failure is.
    Unknown,
}

impl Scope {
    /// Returns the name used in dead letters, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Scope::Record => "record",
            Scope::Dependency => "dependency",
            Scope::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The result of classifying an error: class, scope and details.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    class: Class,
    scope: Scope,
    retry_after: Option<Duration>,
    code: Option<Cow<'static, str>>,
    dependency: Option<Cow<'static, str>>,
}

impl Verdict {
    /// Creates a verdict: another attempt may succeed, scope unknown.
    pub const fn transient() -> Self {
        Verdict::new(Class::Transient, Scope::Unknown)
    }

    /// Creates a verdict: another attempt fails in the same way, and the record is at fault.
    pub const fn permanent() -> Self {
        Verdict::new(Class::Permanent, Scope::Record)
    }

    /// Creates a verdict with this class and scope.
    pub const fn new(class: Class, scope: Scope) -> Self {
        Verdict {
            class,
            scope,
            retry_after: None,
            code: None,
            dependency: None,
        }
    }

    /// Sets the scope: whose fault the failure is.
    #[must_use]
    pub const fn with_scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// Sets the delay before the next attempt. The delay replaces the computed backoff, and the retry policy
    /// bounds it.
    #[must_use]
    pub const fn with_retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// Sets the dependency that is at fault, and [`Scope::Dependency`]. The failure counts for the breaker of
    /// that name, if the processor has [one](crate::ResilientBuilder::dependency_breaker).
    #[must_use]
    pub fn with_dependency(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.scope = Scope::Dependency;
        self.dependency = Some(name.into());
        self
    }

    /// Sets a short code for logs, metrics and filters, such as `card_declined` or an AWS error code. Codes
    /// appear where error texts do not, so a code must quote no payload.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<Cow<'static, str>>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// Returns the class: can another attempt succeed?
    pub const fn class(&self) -> Class {
        self.class
    }

    /// Returns the scope: whose fault is it?
    pub const fn scope(&self) -> Scope {
        self.scope
    }

    /// Returns the delay before the next attempt that the failing side asked for.
    pub const fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Returns the dependency that is at fault, if the classifier named one.
    pub fn dependency(&self) -> Option<&str> {
        self.dependency.as_deref()
    }

    /// Returns the short code, if the classifier knew one.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }
}

/// An error together with its [`Verdict`].
///
/// A processor creates a failure with [`MarkFailure`] or the constructors here. The engine creates one from
/// every other error. The text of a failure is the text of its error.
///
/// The `source()` of a failure is a carrier of the verdict, whose `source()` is the error itself. The two
/// layers matter: `anyhow`, transparent enums, `Arc` and `io::Error::other` expose only the *source* of the
/// error that they wrap. A mark on the outer layer alone would be lost.
#[derive(Debug)]
pub struct Failure(Marked);

/// The inner layer of a [`Failure`], which a walk over the chain finds.
#[derive(Debug)]
struct Marked {
    verdict: Verdict,
    error: BoxError,
}

impl Failure {
    /// Creates a failure from an error and its verdict. If the error is a failure already, the new verdict
    /// replaces the old one.
    pub fn new(error: impl Into<BoxError>, verdict: Verdict) -> Self {
        let error = match error.into().downcast::<Failure>() {
            Ok(marked) => marked.0.error,
            Err(error) => error,
        };
        Failure(Marked { verdict, error })
    }

    /// Creates a failure that another attempt may fix.
    pub fn transient(error: impl Into<BoxError>) -> Self {
        Failure::new(error, Verdict::transient())
    }

    /// Creates a failure of this record that no attempt fixes.
    pub fn permanent(error: impl Into<BoxError>) -> Self {
        Failure::new(error, Verdict::permanent())
    }

    /// Returns the same failure with another scope.
    #[must_use]
    pub fn with_scope(self, scope: Scope) -> Self {
        self.with_verdict(|verdict| verdict.with_scope(scope))
    }

    /// Returns the same failure as the fault of this dependency; see [`Verdict::with_dependency`].
    #[must_use]
    pub fn with_dependency(self, name: impl Into<Cow<'static, str>>) -> Self {
        self.with_verdict(|verdict| verdict.with_dependency(name))
    }

    /// Returns the same failure with a delay before the next attempt; see [`Verdict::with_retry_after`].
    #[must_use]
    pub fn with_retry_after(self, delay: Duration) -> Self {
        self.with_verdict(|verdict| verdict.with_retry_after(delay))
    }

    /// Returns the same failure with a short code; see [`Verdict::with_code`].
    #[must_use]
    pub fn with_code(self, code: impl Into<Cow<'static, str>>) -> Self {
        self.with_verdict(|verdict| verdict.with_code(code))
    }

    fn with_verdict(self, change: impl FnOnce(Verdict) -> Verdict) -> Self {
        Failure(Marked {
            verdict: change(self.0.verdict),
            error: self.0.error,
        })
    }

    /// Returns the verdict on the error.
    pub fn verdict(&self) -> &Verdict {
        &self.0.verdict
    }

    /// Returns the error itself.
    pub fn error(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.0.error
    }

    /// Returns the error itself, owned.
    pub fn into_error(self) -> BoxError {
        self.0.error
    }

    /// Returns the texts of the error and its sources, outermost first. Carriers of verdicts have no text of
    /// their own and are skipped. A text that only repeats the one above it is skipped as well.
    pub fn chain(&self) -> impl Iterator<Item = String> + '_ {
        let mut last = None;
        chain(self.error()).filter_map(move |error| {
            let text = text(error);
            if error.is::<Marked>() || last.as_ref() == Some(&text) {
                return None;
            }
            last = Some(text.clone());
            Some(text)
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.error, f)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

impl fmt::Display for Marked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "marked {}", self.verdict.class)
    }
}

impl Error for Marked {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.error)
    }
}

/// Returns the verdict of the outermost mark in an error's chain.
pub(crate) fn mark<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Verdict> {
    chain(error).find_map(|error| error.downcast_ref::<Marked>().map(|marked| &marked.verdict))
}

/// Returns an error and its sources, outermost first.
pub(crate) fn chain<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> + 'a {
    // Real chains are short. The bound guards against a chain that runs in a circle.
    std::iter::successors(Some(error), |&error| caught(|| inner(error)).flatten()).take(64)
}

/// The maximum length of an error's text that is kept, in bytes.
const MAX_TEXT_BYTES: usize = 64 * 1024;

/// Returns the text of an error, whatever the error's code does. Some errors fail to write their text (for
/// example a date with a bad format), panic, or never stop writing.
pub(crate) fn text(error: &(dyn Error + 'static)) -> String {
    written(format_args!("{error}"))
}

/// Returns the texts of an error and of its sources, joined with colons.
pub(crate) fn texts(error: &(dyn Error + 'static)) -> String {
    let mut texts: Vec<String> = chain(error).map(text).collect();
    // A wrapper may have the same text as the error that it wraps.
    texts.dedup();
    texts.join(": ")
}

/// Returns any text that an error's code writes, as safely as [`text`].
pub(crate) fn written(what: fmt::Arguments<'_>) -> String {
    let mut text = BoundedText::default();
    match caught(|| fmt::write(&mut text, what)) {
        Some(Err(_)) if !text.is_full => text.kept.push_str(UNWRITABLE),
        None => text.kept.push_str(UNWRITABLE),
        Some(_) => {}
    }
    text.kept
}

/// The replacement for the part of a text that an error's code failed to write.
const UNWRITABLE: &str = "(the text of this error cannot be written)";

/// A text of at most `MAX_TEXT_BYTES`; the rest is dropped.
#[derive(Default)]
struct BoundedText {
    kept: String,
    is_full: bool,
}

impl fmt::Write for BoundedText {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let room = MAX_TEXT_BYTES.saturating_sub(self.kept.len());
        let end = part.floor_char_boundary(room.min(part.len()));
        self.kept.push_str(&part[..end]);
        self.is_full |= end < part.len();
        match self.is_full {
            false => Ok(()),
            // Code that checks the result stops writing.
            true => Err(fmt::Error),
        }
    }
}

/// Returns the error that an error wraps. The `source()` of an `io::Error`, or of an error in an `Arc`, is
/// the source of its *inner* error. A plain walk over the sources would skip the inner error.
fn inner<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(shared) = error.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
        return Some(&**shared);
    }
    match error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref)
    {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

/// Marks the error of a `Result`, where it arises, with whether another attempt can succeed.
///
/// ```
/// use std::time::Duration;
/// use redrive::{Failure, MarkFailure, Scope};
///
/// fn parse(text: &str) -> Result<u32, Failure> {
///     text.parse::<u32>().permanent()                       // no attempt fixes bad data
/// }
/// fn charge() -> Result<(), Failure> {
///     Err("the bank is busy")
///         .retry_after(Duration::from_secs(2))              // transient, and not before 2 s
///         .map_err(|failure| failure.with_scope(Scope::Dependency))
/// }
/// # assert!(parse("x").is_err() && charge().is_err());
/// ```
///
/// The mark survives `?` into `anyhow::Error` (with or without context), a transparent enum variant,
/// an `Arc` and `io::Error::other`.
pub trait MarkFailure<T> {
    /// Marks the error as transient: another attempt may succeed.
    fn transient(self) -> Result<T, Failure>;

    /// Marks the error as permanent: no attempt can succeed, and the record is at fault.
    fn permanent(self) -> Result<T, Failure>;

    /// Marks the error as transient, with a delay before the next attempt. On a [`Failure`] only the delay
    /// changes, and the rest of the verdict stays.
    fn retry_after(self, delay: Duration) -> Result<T, Failure>;
}

impl<T, E: Into<BoxError>> MarkFailure<T> for Result<T, E> {
    fn transient(self) -> Result<T, Failure> {
        self.map_err(Failure::transient)
    }

    fn permanent(self) -> Result<T, Failure> {
        self.map_err(Failure::permanent)
    }

    fn retry_after(self, delay: Duration) -> Result<T, Failure> {
        self.map_err(|error| match error.into().downcast::<Failure>() {
            Ok(failure) => failure.with_retry_after(delay),
            Err(error) => Failure::transient(error).with_retry_after(delay),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_can_be_refined_and_replaced() {
        let failure = Err::<(), _>("busy")
            .permanent()
            .retry_after(Duration::from_secs(3))
            .expect_err("an error");
        assert_eq!(
            failure.verdict().class(),
            Class::Permanent,
            "only the delay was added"
        );
        assert_eq!(failure.verdict().retry_after(), Some(Duration::from_secs(3)));

        let failure = Err::<(), _>(failure).transient().expect_err("an error");
        assert_eq!(failure.verdict(), &Verdict::transient());
        assert_eq!(failure.to_string(), "busy", "the error is not wrapped twice");
    }

    #[test]
    fn the_chain_names_every_error_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("charging failed")]
        struct Outer(#[source] Failure);

        let inner = Failure::permanent("card declined");
        let outer = Failure::transient(Outer(inner));
        assert_eq!(
            outer.chain().collect::<Vec<_>>(),
            ["charging failed", "card declined"]
        );
    }
}
