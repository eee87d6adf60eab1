//! What is written, and how: colours on a terminal alone, questions only to one.

use std::error::Error;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::time::SystemTime;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use redrive::BoxError;
use redrive::replay::Rest;

/// An error with all that caused it, each once.
pub(crate) fn error(error: &dyn Error) {
    let red = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (on, off) = if red { ("\x1b[31m", "\x1b[0m") } else { ("", "") };
    eprintln!("{on}redrive: {}{off}", chain(error));
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
pub(crate) fn rest(rest: Rest) {
    if rest.behind > 0 {
        eprintln!(
            "about {} more are behind these in their groups of the FIFO queue, and not seen",
            rest.behind
        );
    }
    if rest.hidden > 0 {
        eprintln!("about {} more are with another reader, and not seen", rest.hidden);
    }
}

/// To the second, in UTC.
pub(crate) fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Writes a line; whether anybody still reads.
pub(crate) fn line(text: impl std::fmt::Display) -> bool {
    writeln!(std::io::stdout().lock(), "{text}").is_ok()
}
