//! The trace: everything that happens, folded into one number and, where it is asked for, written down.

use std::collections::VecDeque;
use std::io::Write;

/// How many of the last events are kept for a failure's report.
const LAST_EVENTS: usize = 40;

/// Folds events into a hash and keeps the last ones.
pub struct Trace {
    hash: u64,
    events: u64,
    last: VecDeque<String>,
    file: Option<Box<dyn Write>>,
    written: std::io::Result<()>,
}

impl Trace {
    /// A trace that also goes to `file`, where there is one.
    pub fn new(seed: u64, file: Option<Box<dyn Write>>) -> Trace {
        Trace { hash: seed, events: 0, last: VecDeque::new(), file, written: Ok(()) }
    }

    /// Folds numbers in.
    pub fn fold(&mut self, words: &[u64]) {
        for word in words {
            // The finalizer of MurmurHash3 (Appleby) spreads every bit over the whole word.
            let mut mixed = (self.hash.rotate_left(5) ^ word).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
            mixed ^= mixed >> 33;
            self.hash = mixed.wrapping_mul(0xC4CE_B9FE_1A85_EC53);
        }
        self.events += 1;
    }

    /// Notes something in words; whoever says it has folded what it stands for.
    pub fn say(&mut self, at_us: u64, text: impl FnOnce() -> String) {
        let line = format!("{:>10.3} ms  {}", Milliseconds(at_us), text());
        if let Some(file) = &mut self.file
            && self.written.is_ok()
        {
            self.written = writeln!(file, "{line}");
        }
        if self.last.len() >= LAST_EVENTS {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// Whether every event should be put into words.
    pub fn is_written(&self) -> bool {
        self.file.is_some()
    }

    /// The hash of everything so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many events there were.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Ends the trace: the last events, or why the file could not be written.
    pub fn finish(mut self) -> std::io::Result<Vec<String>> {
        self.written?;
        if let Some(file) = &mut self.file {
            file.flush()?;
        }
        Ok(self.last.into())
    }
}

/// Microseconds, shown as milliseconds with three digits.
struct Milliseconds(u64);

impl std::fmt::Display for Milliseconds {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = formatter.width().unwrap_or(0);
        let text = format!("{}.{:03}", self.0 / 1_000, self.0 % 1_000);
        write!(formatter, "{text:>width$}")
    }
}
