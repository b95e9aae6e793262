//! Results on stdout, everything else on stderr; colour on a terminal only.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::error::CliError;

/// Where and how to print.
pub struct Output {
    json: bool,
    quiet: bool,
    colour: bool,
}

impl Output {
    /// Output as the global options ask for it.
    pub fn new(json: bool, quiet: bool) -> Output {
        let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Output { json, quiet, colour }
    }

    /// Whether results are printed as JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Bytes on stdout, as they are.
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), CliError> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            // Whoever closed the pipe has read enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(CliError::io("write to", "standard output", &error)),
            Ok(()) => Ok(()),
        }
    }

    /// A line on stdout.
    pub fn line(&self, text: &str) -> Result<(), CliError> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// A result: as JSON, or as `text` writes it.
    pub fn result<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> Result<(), CliError> {
        if !self.json {
            return self.bytes(text().as_bytes());
        }
        let json = serde_json::to_string_pretty(value)
            .map_err(|error| CliError::failed(format!("the result cannot be written as JSON: {error}")))?;
        self.line(&json)
    }

    /// One of several results, as it comes: a line of JSON, or as `text` writes it.
    pub fn item<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> Result<(), CliError> {
        if !self.json {
            return self.bytes(text().as_bytes());
        }
        let json = serde_json::to_string(value)
            .map_err(|error| CliError::failed(format!("the result cannot be written as JSON: {error}")))?;
        self.line(&json)
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
            drop(write!(io::stderr().lock(), "\r\u{1b}[K{}", self.dim(text)));
        }
    }

    /// Bytes on stderr, as they are.
    pub fn error_bytes(&self, bytes: &[u8]) {
        drop(io::stderr().lock().write_all(bytes));
    }

    /// An error on stderr.
    pub fn complain(&self, error: &CliError) {
        if self.json {
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
        if self.colour { format!("\u{1b}[2m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// Rows as columns of equal width.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let head: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    let mut text = String::new();
    for row in core::iter::once(&head).chain(rows) {
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
