//! Failures: an error after someone has said whether another try can help, and whose fault it is.

pub mod classify;

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::external::caught;

/// An error of any type, as handlers return it.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// Will trying again help?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Another try may succeed.
    Transient,
    /// Another try fails the same way.
    Permanent,
}

impl Class {
    /// The name used in dead letters, logs and metrics.
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

/// Whose fault is it?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// This record's: others would pass.
    Record,
    /// Something the handler depends on: a database, a service, a permission. Others fail as well.
    Dependency,
    /// Nobody said.
    Unknown,
}

impl Scope {
    /// The name used in dead letters, logs and metrics.
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

/// What a classifier says of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    class: Class,
    scope: Scope,
    retry_after: Option<Duration>,
    code: Option<Cow<'static, str>>,
    dependency: Option<Cow<'static, str>>,
}

impl Verdict {
    /// Another try may succeed; scope unknown.
    pub const fn transient() -> Self {
        Verdict::new(Class::Transient, Scope::Unknown)
    }

    /// Another try fails the same way, and the record is to blame.
    pub const fn permanent() -> Self {
        Verdict::new(Class::Permanent, Scope::Record)
    }

    /// Both said.
    pub const fn new(class: Class, scope: Scope) -> Self {
        Verdict {
            class,
            scope,
            retry_after: None,
            code: None,
            dependency: None,
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn with_scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// Not before this time has passed. It takes the place of the computed backoff, and the retry
    /// policy bounds it.
    #[must_use]
    pub const fn with_retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// The fault of this dependency: it counts for the breaker of that name, if the processor has
    /// [one](crate::ResilientBuilder::dependency_breaker).
    #[must_use]
    pub fn with_dependency(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.scope = Scope::Dependency;
        self.dependency = Some(name.into());
        self
    }

    /// A short code for logs, metrics and filters, such as `card_declined` or an AWS error code. It
    /// is written where error texts are not, so it must quote no payload.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<Cow<'static, str>>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// Will trying again help?
    pub const fn class(&self) -> Class {
        self.class
    }

    /// Whose fault is it?
    pub const fn scope(&self) -> Scope {
        self.scope
    }

    /// How long the failing side asked to be left alone.
    pub const fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The dependency whose fault it is, if the classifier named it.
    pub fn dependency(&self) -> Option<&str> {
        self.dependency.as_deref()
    }

    /// The short code, if the classifier knew one.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }
}

/// An error together with its [`Verdict`].
///
/// A handler makes one with [`MarkFailure`] or the constructors here; the engine makes one of every
/// other error. The text of a failure is the text of its error.
///
/// Its `source()` is the verdict's carrier, whose `source()` is the error itself. The two layers
/// matter: `anyhow`, transparent enums, `Arc` and `io::Error::other` show a walker of the chain only
/// the *source* of the error they wrap, so a mark on the outer layer alone would be lost.
#[derive(Debug)]
pub struct Failure(Marked);

/// The inner layer of a [`Failure`]: what a walk over the chain finds.
#[derive(Debug)]
struct Marked {
    verdict: Verdict,
    error: BoxError,
}

impl Failure {
    /// An error with its verdict. If the error is a failure already, the new verdict replaces the
    /// old one.
    pub fn new(error: impl Into<BoxError>, verdict: Verdict) -> Self {
        let error = match error.into().downcast::<Failure>() {
            Ok(marked) => marked.0.error,
            Err(error) => error,
        };
        Failure(Marked { verdict, error })
    }

    /// An error that another try may mend.
    pub fn transient(error: impl Into<BoxError>) -> Self {
        Failure::new(error, Verdict::transient())
    }

    /// An error of this record that no try mends.
    pub fn permanent(error: impl Into<BoxError>) -> Self {
        Failure::new(error, Verdict::permanent())
    }

    /// The same failure with another scope.
    #[must_use]
    pub fn with_scope(self, scope: Scope) -> Self {
        self.with_verdict(|verdict| verdict.with_scope(scope))
    }

    /// The same failure, as the fault of this dependency; see [`Verdict::with_dependency`].
    #[must_use]
    pub fn with_dependency(self, name: impl Into<Cow<'static, str>>) -> Self {
        self.with_verdict(|verdict| verdict.with_dependency(name))
    }

    /// The same failure, not to be tried before this time has passed.
    #[must_use]
    pub fn with_retry_after(self, delay: Duration) -> Self {
        self.with_verdict(|verdict| verdict.with_retry_after(delay))
    }

    /// The same failure with a short code; see [`Verdict::with_code`].
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

    /// What was said of the error.
    pub fn verdict(&self) -> &Verdict {
        &self.0.verdict
    }

    /// The error itself.
    pub fn error(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.0.error
    }

    /// The error itself, owned.
    pub fn into_error(self) -> BoxError {
        self.0.error
    }

    /// The texts of the error and its sources, outermost first. The carriers of verdicts have no
    /// text of their own and are passed over, and so is a text that only repeats the one above it.
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

/// What was said of the error: the outermost mark in its chain.
pub(crate) fn mark<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Verdict> {
    chain(error).find_map(|error| error.downcast_ref::<Marked>().map(|marked| &marked.verdict))
}

/// An error and its sources, outermost first.
pub(crate) fn chain<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> + 'a {
    // A chain is short; the bound is against one that runs in a circle.
    std::iter::successors(Some(error), |&error| caught(|| inner(error)).flatten()).take(64)
}

/// The longest text of an error that is kept, in bytes.
const MAX_TEXT_BYTES: usize = 64 * 1024;

/// The text of an error, whatever its code does: some fail (as a date does that is written by a bad format), panic, or
/// have no end.
pub(crate) fn text(error: &(dyn Error + 'static)) -> String {
    written(format_args!("{error}"))
}

/// The texts of an error and of its sources.
pub(crate) fn texts(error: &(dyn Error + 'static)) -> String {
    let mut texts: Vec<String> = chain(error).map(text).collect();
    // A wrapper may have the text of what it wraps.
    texts.dedup();
    texts.join(": ")
}

/// As [`text`], of anything that an error's code writes.
pub(crate) fn written(what: fmt::Arguments<'_>) -> String {
    let mut text = BoundedText::default();
    match caught(|| fmt::write(&mut text, what)) {
        Some(Err(_)) if !text.is_full => text.kept.push_str(UNWRITABLE),
        None => text.kept.push_str(UNWRITABLE),
        Some(_) => {}
    }
    text.kept
}

/// Stands for what an error's code did not write of its text.
const UNWRITABLE: &str = "(the text of this error cannot be written)";

/// A text that takes no more than a certain length.
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
            // Code that heeds this writes no more.
            true => Err(fmt::Error),
        }
    }
}

/// What an error wraps. The source of an `io::Error`, or of an error in an `Arc`, is its *inner* error's source, so that
/// one would be passed over.
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

/// Says of a `Result`'s error, where it arises, whether another try can help.
///
/// ```
/// use std::time::Duration;
/// use redrive::{Failure, MarkFailure, Scope};
///
/// fn parse(text: &str) -> Result<u32, Failure> {
///     text.parse::<u32>().permanent()                       // no try mends bad data
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
    /// Another try may mend it.
    fn transient(self) -> Result<T, Failure>;

    /// No try mends it, and the record is to blame.
    fn permanent(self) -> Result<T, Failure>;

    /// Another try may mend it, but not before this time has passed. On a [`Failure`] all else that
    /// was said of it stays.
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
