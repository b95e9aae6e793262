//! Results on stdout, everything else on stderr; colour on a terminal only.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use grey_api::{Delay, Observer};
use rustix::termios::tcgetwinsize;
use serde::Serialize;

use super::error::CliError;

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For people, with everything there is to say
    Wide,
    /// One JSON document
    Json,
    /// A line of JSON for each result
    Jsonl,
    /// One YAML document
    Yaml,
    /// The identifiers alone, one a line
    Name,
}

/// Where and how to print.
pub struct Output {
    format: Format,
    quiet: bool,
    colour: bool,
    /// Whether whoever read the results has closed the pipe.
    closed: AtomicBool,
}

/// A result about one thing, with its identifier.
#[derive(Serialize)]
pub struct About<'a, T> {
    id: &'a str,
    #[serde(flatten)]
    what: &'a T,
}

impl<'a, T> About<'a, T> {
    /// What there is to say about `id`.
    pub fn new(id: &'a str, what: &'a T) -> About<'a, T> {
        About { id, what }
    }
}

fn unwritable(error: &dyn core::fmt::Display) -> CliError {
    CliError::failed(format!("the result cannot be written: {error}"))
}

/// The identifier of a result: its own, or of what it is about.
fn name_of<T: Serialize>(value: &T) -> Result<String, CliError> {
    let value = serde_json::to_value(value).map_err(|error| unwritable(&error))?;
    let name = ["id", "task", "job", "cluster", "name"].iter().find_map(|key| value.get(key)?.as_str());
    name.map(str::to_owned).ok_or_else(no_name)
}

fn no_name() -> CliError {
    CliError::usage("`-o name` prints identifiers, and this result has none")
        .hint("`-o json` prints all of it")
}

impl Output {
    /// Output as the global options ask for it.
    pub fn new(format: Format, quiet: bool) -> Output {
        let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Output { format, quiet, colour, closed: AtomicBool::new(false) }
    }

    /// Whether results are for programs, so that nothing else may stand on stdout.
    pub fn is_for_programs(&self) -> bool {
        !matches!(self.format, Format::Table | Format::Wide)
    }

    /// Whether people want to see more.
    pub fn is_wide(&self) -> bool {
        self.format == Format::Wide
    }

    /// Whether a listing is one document, so that all of it has to be there before it is written.
    pub fn is_one_document(&self) -> bool {
        matches!(self.format, Format::Json | Format::Yaml)
    }

    /// Refuses `-o name` before work that comes to a result without a name.
    pub fn must_not_be_names(&self) -> Result<(), CliError> {
        if self.format == Format::Name { Err(no_name()) } else { Ok(()) }
    }

    /// Bytes on stdout, as they are.
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), CliError> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            // Whoever closed the pipe has read enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(CliError::io("write to", "standard output", &error)),
            Ok(()) => Ok(()),
        }
    }

    /// Whether nobody reads results any more, as far as was noticed.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// A line on stdout.
    pub fn line(&self, text: &str) -> Result<(), CliError> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// A result: as a document, or as `text` writes it.
    pub fn result<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> Result<(), CliError> {
        match self.format {
            Format::Table | Format::Wide => self.bytes(text().as_bytes()),
            Format::Json => {
                self.line(&serde_json::to_string_pretty(value).map_err(|error| unwritable(&error))?)
            }
            Format::Jsonl => self.line(&serde_json::to_string(value).map_err(|error| unwritable(&error))?),
            Format::Yaml => {
                let text = serde_saphyr::to_string(value).map_err(|error| unwritable(&error))?;
                self.line(text.trim_end())
            }
            Format::Name => self.line(&name_of(value)?),
        }
    }

    /// Several results: as one document, one after another, or as `text` writes them together.
    pub fn results<T: Serialize>(&self, values: &[T], text: impl FnOnce() -> String) -> Result<(), CliError> {
        match self.format {
            Format::Jsonl | Format::Name => {
                values.iter().try_for_each(|value| self.result(value, String::new))
            }
            _ => self.result(&values, text),
        }
    }

    /// One of several results, as it comes: a line or a document of its own, or as `text` writes it.
    pub fn item<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> Result<(), CliError> {
        match self.format {
            Format::Json => self.line(&serde_json::to_string(value).map_err(|error| unwritable(&error))?),
            Format::Yaml => {
                self.line("---")?;
                self.result(value, text)
            }
            _ => self.result(value, text),
        }
    }

    /// A remark on stderr. A closed stderr is nobody's failure.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            drop(writeln!(io::stderr().lock(), "{}", self.dim(&format!("grey: {text}"))));
        }
    }

    /// Whether progress is shown: to a person at a terminal only.
    pub fn shows_progress(&self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }

    /// A line on stderr in the place of the one before; an empty one clears it.
    pub fn progress(&self, text: &str) {
        if self.shows_progress() {
            show_progress(text, self.colour);
        }
    }

    /// Shows what is waited for where an answer does not come, to whom progress is shown.
    pub fn observer(&self) -> Option<Observer> {
        let colour = self.colour;
        let tell = move |delay: Option<&Delay>| {
            show_progress(&delay.map(|delay| waits(delay, columns())).unwrap_or_default(), colour);
        };
        self.shows_progress().then(|| Observer::new(tell))
    }

    /// Bytes on stderr, as they are.
    pub fn error_bytes(&self, bytes: &[u8]) {
        drop(io::stderr().lock().write_all(bytes));
    }

    /// An error on stderr.
    pub fn complain(&self, error: &CliError) {
        if matches!(self.format, Format::Json | Format::Jsonl) {
            let body = serde_json::json!({
                "error": { "code": error.code, "message": error.message, "hint": error.hint }
            });
            drop(writeln!(io::stderr().lock(), "{body}"));
            return;
        }
        let head = if self.colour { "\u{1b}[31merror:\u{1b}[0m" } else { "error:" };
        let code = error.code.map(|code| format!(" [{code}]")).unwrap_or_default();
        let mut text = format!("{head} {}{code}\n", error.message);
        if let Some(hint) = &error.hint {
            text.push_str(&format!("  {hint}\n"));
        }
        self.error_bytes(text.as_bytes());
    }

    fn dim(&self, text: &str) -> String {
        dim(text, self.colour)
    }
}

fn dim(text: &str, colour: bool) -> String {
    if colour { format!("\u{1b}[2m{text}\u{1b}[0m") } else { text.to_owned() }
}

fn show_progress(text: &str, colour: bool) {
    drop(write!(io::stderr().lock(), "\r\u{1b}[K{}", dim(&cut(text, columns()), colour)));
}

/// How many columns the terminal has; 0 where nobody knows.
fn columns() -> usize {
    tcgetwinsize(io::stderr()).map_or(0, |size| usize::from(size.ws_col))
}

/// As much of a text as fits into a line of a terminal with so many columns, 0 where nobody knows: what went on in the next one would stay.
fn cut(text: &str, columns: usize) -> String {
    if columns == 0 || text.chars().count() < columns {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(columns.saturating_sub(2)).collect();
    short.push('…');
    short
}

/// Who does not answer, what was said last, and what is done about it: in a line of so many columns, of which what was said has what is left.
fn waits(delay: &Delay, columns: usize) -> String {
    let (address, waited_s) = (&delay.address, delay.waited.as_secs());
    let begin = format!("no answer yet from {address}");
    let Some(said) = &delay.said else { return format!("{begin} ({waited_s} s)") };
    let said = harmless(said);
    let tried_for_s = delay.tried_for.map_or(0, |tried_for| tried_for.as_secs());
    let left = |end: &str| columns.saturating_sub(format!("{begin}: {end}").chars().count());
    let (long, short) = (
        format!("; trying again ({waited_s} s, until {tried_for_s} s)"),
        format!(" ({waited_s} of {tried_for_s} s)"),
    );
    let end = if columns == 0 || left(&long) > said.chars().count() { long } else { short };
    let said = if columns == 0 { said } else { cut(&said, left(&end).max(1)) };
    format!("{begin}: {said}{end}")
}

/// Rows as columns of equal width below a header; without one when it is empty.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).chain([header.len()]).max().unwrap_or(0);
    let mut widths = vec![0; columns];
    let head: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    let lines = || (!head.is_empty()).then_some(&head).into_iter().chain(rows);
    for row in lines() {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in lines() {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line: Vec<String> = cells.collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Text of others, without what would steer a terminal.
pub fn harmless(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_answer_that_does_not_come_is_told_with_whom_it_is_expected_from_and_what_was_said() {
        let delay = |said: Option<&str>, tried_for: Option<u64>| Delay {
            address: "https://grey1:7654".to_owned(),
            waited: Duration::from_millis(3_900),
            said: said.map(str::to_owned),
            tried_for: tried_for.map(Duration::from_secs),
        };
        for (delay, expected) in [
            (delay(None, Some(60)), "no answer yet from https://grey1:7654 (3 s)"),
            (delay(None, None), "no answer yet from https://grey1:7654 (3 s)"),
            (
                delay(Some("no\nserver leads"), Some(60)),
                "no answer yet from https://grey1:7654: no\u{fffd}server leads; trying again (3 s, until 60 s)",
            ),
        ] {
            assert_eq!(waits(&delay, 0), expected);
        }
    }

    #[test]
    fn what_was_said_is_cut_and_not_for_how_long_it_is_tried() {
        let delay = Delay {
            address: "https://grey1:7654".to_owned(),
            waited: Duration::from_secs(3),
            said: Some("no server leads at the moment".to_owned()),
            tried_for: Some(Duration::from_secs(60)),
        };
        for (columns, line) in [
            (
                0,
                "no answer yet from https://grey1:7654: no server leads at the moment; trying again (3 s, until 60 s)",
            ),
            (
                101,
                "no answer yet from https://grey1:7654: no server leads at the moment; trying again (3 s, until 60 s)",
            ),
            (81, "no answer yet from https://grey1:7654: no server leads at the moment (3 of 60 s)"),
            (70, "no answer yet from https://grey1:7654: no server leads a… (3 of 60 s)"),
        ] {
            assert_eq!(waits(&delay, columns), line, "{columns}");
        }
    }

    #[test]
    fn progress_stays_within_its_line() {
        for (text, columns, expected) in
            [("grey", 0, "grey"), ("grey", 5, "grey"), ("grey", 4, "gr…"), ("grey", 1, "…"), ("", 1, "")]
        {
            assert_eq!(cut(text, columns), expected, "{text} {columns}");
        }
    }
}
