//! What is written, and how: colours on a terminal alone, questions only to one.

use std::borrow::Cow;
use std::error::Error;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::time::{Duration, SystemTime};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use redrive::BoxError;
use redrive::dead_letter::DecodeError;
use redrive::replay::Remaining;

/// An error with all that caused it, each once.
pub(crate) fn error(error: &dyn Error) {
    let red = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (on, off) = if red { ("\x1b[31m", "\x1b[0m") } else { ("", "") };
    eprintln!("{on}redrive: {}{off}", escaped(&chain(error)));
}

/// Escapes what a terminal acts on: control characters, and characters that change the direction of text.
///
/// Fields of dead letters, names of objects and texts of services are untrusted. Every such text goes through here.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    match text.contains(is_unsafe) {
        true => text.chars().fold(String::new(), escape_into).into(),
        false => text.into(),
    }
}

/// The same of a text that may have lines and tabs, such as a payload.
pub(crate) fn escaped_lines(text: &str) -> String {
    text.chars().fold(String::new(), |out, c| match c {
        '\n' | '\t' => out + &*c.encode_utf8(&mut [0; 4]),
        c => escape_into(out, c),
    })
}

fn escape_into(mut out: String, c: char) -> String {
    match is_unsafe(c) {
        true => out.extend(c.escape_default()),
        false => out.push(c),
    }
    out
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Escapes JSON for a terminal: inside a string JSON takes such characters as they are.
pub(crate) fn json(json: &str) -> String {
    json.chars().fold(String::new(), |mut out, c| {
        match is_unsafe(c) && c != '\n' {
            true => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
        out
    })
}

/// Returns an error code if it looks like one, and otherwise a placeholder: a handler can make a code of what a record holds.
pub(crate) fn code(code: Option<&str>) -> &str {
    let is_one = |code: &str| {
        (1..=64).contains(&code.len())
            && code
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-.:#/".contains(&byte))
    };
    match code {
        None => "-",
        Some(code) if is_one(code) => code,
        Some(_) => HIDDEN_CODE,
    }
}

/// Shown in the place of an error code that may hold a payload's text.
pub(crate) const HIDDEN_CODE: &str = "(hidden)";

/// Tells what is wrong with a letter that cannot be read, without what is in it: the error of a JSON parser quotes the text.
pub(crate) fn unreadable(error: &DecodeError) -> String {
    match error
        .source()
        .and_then(|source| source.downcast_ref::<serde_json::Error>())
    {
        Some(json) => format!(
            "{error} ({:?} error at line {} column {})",
            json.classify(),
            json.line(),
            json.column()
        ),
        None => error.to_string(),
    }
}

pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}

/// Whether to go on. An error without a terminal to ask at.
pub(crate) fn confirm(question: &str, yes: bool) -> Result<bool, BoxError> {
    if yes {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() {
        return Err(format!("{question} Say --yes to go on without a terminal to ask at").into());
    }
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Of something long, on standard error; nothing where that is no terminal.
pub(crate) fn progress(of: Option<u64>) -> ProgressBar {
    let (bar, template) = match of {
        Some(of) => (
            ProgressBar::new(of),
            "{wide_bar} {human_pos}/{human_len}  {rate}  {eta} left  {msg}",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {human_pos}  {rate}  {msg}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        let rate = |state: &ProgressState, to: &mut dyn std::fmt::Write| {
            let _ = write!(to, "{:.0}/s", state.per_sec());
        };
        bar.set_style(style.with_key("rate", rate));
    }
    bar
}

/// What a queue has not given.
pub(crate) fn rest(rest: Remaining) {
    if rest.behind > 0 {
        eprintln!(
            "about {} more were not given, in a FIFO queue because they are behind others of their groups",
            rest.behind
        );
    }
    if rest.hidden > 0 {
        eprintln!("about {} more are with another reader, and not seen", rest.hidden);
    }
}

/// To the second, in UTC.
pub(crate) fn time(time: SystemTime) -> String {
    // The format ends with the year 9999.
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_seconds(time.clamp(SystemTime::UNIX_EPOCH, last)).to_string()
}

/// Writes a line; whether anybody still reads.
pub(crate) fn line(text: impl std::fmt::Display) -> bool {
    writeln!(std::io::stdout().lock(), "{text}").is_ok()
}

/// Writes a JSON value as a line; returns whether the reader is still there.
pub(crate) fn json_line(value: &serde_json::Value) -> bool {
    line(json(&value.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_acts_on_is_escaped() {
        assert_eq!(escaped("grün 🦀 \"x\""), "grün 🦀 \"x\"");
        let bad = "a\u{1b}[2J\r\n\u{9b}31m\u{7f}\u{202e}b";
        let good = escaped(bad);
        assert!(!good.contains(is_unsafe), "{good:?}");
        assert!(good.starts_with("a\\u{1b}[2J") && good.ends_with('b'), "{good}");
        assert_eq!(escaped_lines("a\n\tb\u{7}"), "a\n\tb\\u{7}");
    }

    #[test]
    fn escaped_json_reads_back() {
        let text = "a\u{1b}\u{9b}\u{7f}\u{202e}\n🦀";
        let line = json(&serde_json::json!({ "code": text }).to_string());
        assert!(!line.contains(is_unsafe), "{line:?}");
        let read: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(read["code"], text);
    }

    #[test]
    fn a_code_that_may_hold_a_payload_is_hidden() {
        for shown in ["NoCustomer", "com.acme#Throttled", "E-17", "http/503"] {
            assert_eq!(code(Some(shown)), shown);
        }
        for hidden in ["alice@example.com", "order 7", "", "grün", &"x".repeat(65)] {
            assert_eq!(code(Some(hidden)), HIDDEN_CODE);
        }
        assert_eq!(code(None), "-");
    }
}
