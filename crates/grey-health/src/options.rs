//! Checking options: everything that is wrong is told at once, so that nobody mends a configuration one line at a time.

use core::fmt;
use core::ops::RangeInclusive;

use crate::error::HealthError;

/// An option outside its bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionProblem {
    /// The option's name.
    pub field: &'static str,
    /// What it is set to.
    pub given: u64,
    /// The least that it may be. Bounds may follow from other options; then least may lie above most.
    pub least: u64,
    /// The most that it may be.
    pub most: u64,
}

impl fmt::Display for OptionProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OptionProblem { field, given, least, most } = self;
        write!(formatter, "`{field}` is {given}; it must be between {least} and {most}")
    }
}

/// Gathers what is wrong.
#[derive(Debug, Default)]
pub(crate) struct Checks(Vec<OptionProblem>);

impl Checks {
    pub(crate) fn within(&mut self, field: &'static str, given: u64, bounds: RangeInclusive<u64>) {
        if !bounds.contains(&given) {
            self.0.push(OptionProblem { field, given, least: *bounds.start(), most: *bounds.end() });
        }
    }

    pub(crate) fn finish(self, part: &'static str) -> Result<(), HealthError> {
        if self.0.is_empty() { Ok(()) } else { Err(HealthError::Options { part, problems: self.0 }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let mut checks = Checks::default();
        checks.within("window", 0, 1..=10);
        checks.within("peers", 5, 1..=10);
        checks.within("timeout_ms", 99, 1..=10);
        assert_eq!(
            checks.finish("detector").unwrap_err().to_string(),
            "the options of the detector are wrong: `window` is 0; it must be between 1 and 10; \
             `timeout_ms` is 99; it must be between 1 and 10"
        );
    }
}
