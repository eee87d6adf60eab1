//! Output: colours, prompts and progress appear only on a terminal.

use std::borrow::Cow;
use std::error::Error;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::time::{Duration, SystemTime};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use redrive::BoxError;
use redrive::dead_letter::DecodeError;
use redrive::replay::Remaining;

/// Prints an error and its chain of causes, without repeating a cause.
pub(crate) fn error(error: &dyn Error) {
    let red = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (on, off) = if red { ("\x1b[31m", "\x1b[0m") } else { ("", "") };
    eprintln!("{on}redrive: {}{off}", escaped(&chain(error)));
}

/// Escapes characters that a terminal interprets: control characters, and characters that change the
/// direction of text.
///
/// Fields of dead letters, names of objects and texts of services are untrusted and must pass through here.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    match text.contains(is_unsafe) {
        true => text.chars().fold(String::new(), escape_into).into(),
        false => text.into(),
    }
}

/// Escapes like [`escaped`], but keeps line feeds and tabs, for a text such as a payload.
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

/// Escapes JSON for a terminal. JSON allows some of these characters unescaped inside a string.
pub(crate) fn json(json: &str) -> String {
    json.chars().fold(String::new(), |mut out, c| {
        match is_unsafe(c) && c != '\n' {
            true => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
        out
    })
}

/// Returns an error code if it looks like one, and otherwise a placeholder. A processor may build a code from
/// the record's data.
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

/// The placeholder for an error code that may contain text of a payload.
pub(crate) const HIDDEN_CODE: &str = "(hidden)";

/// Describes why a dead letter cannot be read, without its content: the error of a JSON parser quotes the
/// text.
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

/// Asks for confirmation and returns the answer. Fails if standard input is not a terminal.
pub(crate) fn confirm(question: &str, yes: bool) -> Result<bool, BoxError> {
    if yes {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() {
        return Err(format!(
            "cannot prompt: standard input is not a terminal; use --yes to skip the prompt ({question})"
        )
        .into());
    }
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Creates a progress bar on standard error, hidden if standard error is not a terminal.
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

/// Reports the messages that a queue holds and did not deliver.
pub(crate) fn rest(rest: Remaining) {
    if rest.behind > 0 {
        eprintln!(
            "about {} more messages were not delivered; a FIFO queue withholds messages behind others of their group",
            rest.behind
        );
    }
    if rest.hidden > 0 {
        eprintln!(
            "about {} more messages are in flight with another reader",
            rest.hidden
        );
    }
}

/// Formats a time in UTC, to the second.
pub(crate) fn time(time: SystemTime) -> String {
    // RFC 3339 ends with the year 9999.
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_seconds(time.clamp(SystemTime::UNIX_EPOCH, last)).to_string()
}

/// Writes a line to standard output. Returns false if the write failed, as after the reader closed the pipe.
pub(crate) fn line(text: impl std::fmt::Display) -> bool {
    writeln!(std::io::stdout().lock(), "{text}").is_ok()
}

/// Writes a JSON value as a line. Returns false if the write failed.
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
