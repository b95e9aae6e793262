//! How full a buffer is, as a level that a sender can act on.

use crate::error::HealthError;
use crate::limits;
use crate::options::Checks;

/// How full a buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// There is room.
    Normal,
    /// It fills: send more slowly.
    Warning,
    /// It is nearly full: send only little.
    Critical,
    /// It is as good as full: send nothing.
    Blocked,
}

impl Level {
    /// Its stable name.
    pub fn name(self) -> &'static str {
        match self {
            Level::Normal => "normal",
            Level::Warning => "warning",
            Level::Critical => "critical",
            Level::Blocked => "blocked",
        }
    }
}

/// What a level means for a sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Send at this part of the usual rate.
    Send {
        /// In thousandths; 1 to 1,000.
        rate_permille: u64,
    },
    /// Send nothing.
    Reject {
        /// Try again after this time, in milliseconds.
        retry_after_ms: u64,
    },
}

/// What a [`Backpressure`] goes by. Fills are in thousandths of the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackpressureOptions {
    /// From this fill on it is a warning; above `hysteresis_permille`, below `critical_permille`.
    pub warning_permille: u64,
    /// From this fill on it is critical; below `blocked_permille`.
    pub critical_permille: u64,
    /// From this fill on it is blocked; at most 1,000.
    pub blocked_permille: u64,
    /// A level ends only when the fill is below its beginning by more than this; 0 to 500.
    pub hysteresis_permille: u64,
    /// The rate at a warning, in thousandths of the usual one; `critical_rate_permille` to 1,000.
    pub warning_rate_permille: u64,
    /// The rate when it is critical; 1 to 1,000.
    pub critical_rate_permille: u64,
    /// When to try again while it is blocked, in milliseconds; 1 to a day.
    pub retry_after_ms: u64,
}

impl Default for BackpressureOptions {
    fn default() -> BackpressureOptions {
        BackpressureOptions {
            warning_permille: 600,
            critical_permille: 800,
            blocked_permille: 950,
            hysteresis_permille: 100,
            warning_rate_permille: 500,
            critical_rate_permille: 100,
            retry_after_ms: 1_000,
        }
    }
}

impl BackpressureOptions {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`HealthError::Options`] with the whole list of what is wrong.
    pub fn validate(&self) -> Result<(), HealthError> {
        let mut checks = Checks::default();
        let below = |bound: u64| bound.saturating_sub(1);
        checks.within("hysteresis_permille", self.hysteresis_permille, 0..=500);
        let warnings = self.hysteresis_permille.saturating_add(1)..=below(self.critical_permille);
        checks.within("warning_permille", self.warning_permille, warnings);
        checks.within("critical_permille", self.critical_permille, 1..=below(self.blocked_permille));
        checks.within("blocked_permille", self.blocked_permille, 1..=1_000);
        checks.within(
            "warning_rate_permille",
            self.warning_rate_permille,
            self.critical_rate_permille..=1_000,
        );
        checks.within("critical_rate_permille", self.critical_rate_permille, 1..=1_000);
        checks.within("retry_after_ms", self.retry_after_ms, 1..=limits::OPTION_MS);
        checks.finish("backpressure")
    }
}

/// How full something is, in thousandths: the fuller of its count and its bytes. A limit of zero is always full.
///
/// ```
/// assert_eq!(grey_health::fill_permille((50, 100), (1_000, 4_000)), 500);
/// ```
pub fn fill_permille(count_of_limit: (u64, u64), bytes_of_limit: (u64, u64)) -> u64 {
    let part = |(used, limit): (u64, u64)| {
        let permille = (u128::from(used) * 1_000).checked_div(u128::from(limit)).unwrap_or(1_000);
        u64::try_from(permille).unwrap_or(u64::MAX)
    };
    part(count_of_limit).max(part(bytes_of_limit))
}

/// The level of one buffer, with hysteresis: it rises as soon as a fill is reached, and falls only when the fill has gone
/// clearly below it, so that a sender is not told one thing and the other in turn.
///
/// ```
/// use grey_health::{Advice, Backpressure, BackpressureOptions, Level};
///
/// let mut pressure = Backpressure::new(BackpressureOptions::default())?;
/// assert_eq!(pressure.update(800), Level::Critical);
/// assert_eq!(pressure.update(700), Level::Critical);
/// assert_eq!(pressure.update(699), Level::Warning);
/// assert_eq!(pressure.advice(), Advice::Send { rate_permille: 500 });
/// # Ok::<(), grey_health::HealthError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backpressure {
    options: BackpressureOptions,
    level: Level,
}

impl Backpressure {
    /// At the level Normal.
    ///
    /// # Errors
    /// [`HealthError::Options`].
    pub fn new(options: BackpressureOptions) -> Result<Backpressure, HealthError> {
        options.validate()?;
        Ok(Backpressure { options, level: Level::Normal })
    }

    /// Takes note of how full the buffer is now (see [`fill_permille`]), and returns the level.
    pub fn update(&mut self, fill_permille: u64) -> Level {
        let reached = self.level_from(fill_permille);
        let kept = self.level_from(fill_permille.saturating_add(self.options.hysteresis_permille));
        self.level = reached.max(self.level.min(kept));
        self.level
    }

    /// The level of something else by the same bounds, without a memory and so without hysteresis.
    pub fn level_at(&self, fill_permille: u64) -> Level {
        self.level_from(fill_permille)
    }

    /// The level as of the last update.
    pub fn level(&self) -> Level {
        self.level
    }

    /// What the level means for a sender.
    pub fn advice(&self) -> Advice {
        self.advice_for(self.level)
    }

    /// What a level means for a sender.
    pub fn advice_for(&self, level: Level) -> Advice {
        match level {
            Level::Normal => Advice::Send { rate_permille: 1_000 },
            Level::Warning => Advice::Send { rate_permille: self.options.warning_rate_permille },
            Level::Critical => Advice::Send { rate_permille: self.options.critical_rate_permille },
            Level::Blocked => Advice::Reject { retry_after_ms: self.options.retry_after_ms },
        }
    }

    fn level_from(&self, permille: u64) -> Level {
        match permille {
            permille if permille >= self.options.blocked_permille => Level::Blocked,
            permille if permille >= self.options.critical_permille => Level::Critical,
            permille if permille >= self.options.warning_permille => Level::Warning,
            _ => Level::Normal,
        }
    }
}

impl Default for Backpressure {
    /// With the usual options.
    fn default() -> Backpressure {
        Backpressure { options: BackpressureOptions::default(), level: Level::Normal }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_rises_at_once_and_falls_late() {
        let mut pressure = Backpressure::new(BackpressureOptions::default()).unwrap();
        let steps = [
            (599, Level::Normal),
            (600, Level::Warning),
            (500, Level::Warning),
            (499, Level::Normal),
            (950, Level::Blocked),
            (850, Level::Blocked),
            (849, Level::Critical),
            (950, Level::Blocked),
            (550, Level::Warning),
            (u64::MAX, Level::Blocked),
            (0, Level::Normal),
        ];
        for (fill, expected) in steps {
            assert_eq!(pressure.update(fill), expected, "at {fill}");
            assert_eq!(pressure.level(), expected);
        }
    }

    #[test]
    fn each_level_tells_a_sender_what_to_do() {
        let mut pressure = Backpressure::new(BackpressureOptions::default()).unwrap();
        let cases = [
            (0, Advice::Send { rate_permille: 1_000 }),
            (600, Advice::Send { rate_permille: 500 }),
            (800, Advice::Send { rate_permille: 100 }),
            (1_000, Advice::Reject { retry_after_ms: 1_000 }),
        ];
        for (fill, expected) in cases {
            pressure.update(fill);
            assert_eq!(pressure.advice(), expected);
        }
    }

    #[test]
    fn the_fill_is_the_fuller_of_count_and_bytes() {
        assert_eq!(fill_permille((1, 3), (0, 1)), 333);
        assert_eq!(fill_permille((0, 3), (u64::MAX, u64::MAX)), 1_000);
        assert_eq!(fill_permille((0, 0), (0, 1)), 1_000);
        assert_eq!(fill_permille((u64::MAX, 1), (0, 1)), u64::MAX);
    }

    #[test]
    fn options_name_all_that_is_wrong() {
        let wrong = BackpressureOptions {
            warning_permille: 100,
            blocked_permille: 1_001,
            warning_rate_permille: 50,
            ..BackpressureOptions::default()
        };
        let Err(HealthError::Options { problems, .. }) = wrong.validate() else { panic!("they passed") };
        let fields: Vec<&str> = problems.iter().map(|problem| problem.field).collect();
        assert_eq!(fields, ["warning_permille", "blocked_permille", "warning_rate_permille"]);
    }
}
