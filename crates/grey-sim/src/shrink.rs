//! Makes a failing run smaller: leaves out classes of fault, then single faults and operations, and keeps what still breaks
//! the same promise.

use std::collections::BTreeSet;

use crate::{Options, Outcome, run};

/// A smaller run that breaks the same promise.
#[derive(Debug, Clone)]
pub struct Smaller {
    /// What to run.
    pub options: Options,
    /// What it comes to.
    pub outcome: Outcome,
    /// How many runs it took to find it.
    pub runs: u32,
}

struct Search<'a> {
    best: Smaller,
    promise: &'static str,
    /// How many operations the whole run began with.
    operations: usize,
    most_runs: u32,
    progress: &'a mut dyn FnMut(u32, &Options),
}

/// Looks for a smaller run, in at most so many runs. `None` when the run does not fail.
pub fn shrink(
    options: &Options,
    most_runs: u32,
    progress: &mut dyn FnMut(u32, &Options),
) -> std::io::Result<Option<Smaller>> {
    let outcome = run(options, None)?;
    let Some(promise) = outcome.broken.as_ref().map(|broken| broken.promise) else { return Ok(None) };
    let mut options = options.clone();
    options.faults = Some(outcome.faults.clone());
    let operations = outcome.begun.len();
    let best = Smaller { options: options.clone(), outcome, runs: 1 };
    let mut search = Search { best, promise, operations, most_runs, progress };
    // The classes that the seed chose, by name: the same run.
    search.tries(options)?;
    // What is left out lets something else come in its place, or makes something else needless.
    let mut size = None;
    while size != Some(search.size()) && search.best.runs < most_runs {
        size = Some(search.size());
        search.fewer_seconds()?;
        search.fewer_classes()?;
        search.fewer_blows()?;
        search.fewer_operations()?;
    }
    Ok(Some(search.best))
}

impl Search<'_> {
    /// Whether a run still breaks the promise; then it is the best one. One that begins more than the whole did is none: without a class of
    /// fault another one may fail to strike, for which the storm goes on.
    fn tries(&mut self, options: Options) -> std::io::Result<bool> {
        if self.best.runs >= self.most_runs {
            return Ok(false);
        }
        self.best.runs += 1;
        (self.progress)(self.best.runs, &options);
        let outcome = run(&options, None)?;
        let same = outcome.broken.as_ref().is_some_and(|broken| broken.promise == self.promise)
            && outcome.begun.len() <= self.operations;
        if same {
            self.best = Smaller { options, outcome, runs: self.best.runs };
        }
        Ok(same)
    }

    /// Seconds, classes, faults and operations.
    fn size(&self) -> (u64, usize, usize, usize) {
        let (options, outcome) = (&self.best.options, &self.best.outcome);
        (options.seconds, outcome.faults.len(), self.blows().len(), outcome.begun.len())
    }

    fn blows(&self) -> Vec<u64> {
        self.best.outcome.blows.difference(&self.best.options.without_blows).copied().collect()
    }

    /// A storm that ends when the promise is broken.
    fn fewer_seconds(&mut self) -> std::io::Result<()> {
        let seconds = self.best.outcome.virtual_us / 1_000_000 + 1;
        if seconds < self.best.options.seconds {
            self.tries(Options { seconds, ..self.best.options.clone() })?;
        }
        Ok(())
    }

    fn fewer_classes(&mut self) -> std::io::Result<()> {
        for fault in self.best.outcome.faults.clone() {
            let mut options = self.best.options.clone();
            options.faults.get_or_insert_default().remove(&fault);
            self.tries(options)?;
        }
        Ok(())
    }

    fn fewer_blows(&mut self) -> std::io::Result<()> {
        self.fewer(self.blows(), |options, part: &[u64]| options.without_blows.extend(part))
    }

    fn fewer_operations(&mut self) -> std::io::Result<()> {
        let left = self.best.outcome.begun.iter().copied().collect();
        self.fewer(left, |options, part: &[(usize, u64)]| options.without_operations.extend(part))
    }

    /// Delta debugging (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002): leaves out ever
    /// smaller parts.
    fn fewer<T: Copy>(
        &mut self,
        mut left: Vec<T>,
        leave_out: impl Fn(&mut Options, &[T]),
    ) -> std::io::Result<()> {
        let mut size = left.len();
        while size > 0 && self.best.runs < self.most_runs {
            let mut at = 0;
            while at < left.len() {
                let end = (at + size).min(left.len());
                let mut options = self.best.options.clone();
                leave_out(&mut options, left.get(at..end).unwrap_or_default());
                if self.tries(options)? {
                    left.drain(at..end);
                } else {
                    at = end;
                }
            }
            size = if size == 1 { 0 } else { size.div_ceil(2) };
        }
        Ok(())
    }
}

/// Numbers as they are written on the command line: `3,5-9`.
pub fn ranges(numbers: &BTreeSet<u64>) -> String {
    let mut parts: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => parts.push((*number, *number)),
        }
    }
    let written = parts.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    written.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_ranges() {
        assert_eq!(ranges(&[3, 5, 6, 7, 9, 10].into()), "3,5-7,9-10");
        assert_eq!(ranges(&BTreeSet::new()), "");
    }
}
