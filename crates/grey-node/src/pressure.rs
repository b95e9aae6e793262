//! How full the door is, for whoever answers a request.

use std::sync::atomic::{AtomicU8, Ordering};

use grey_health::Level;

/// The level as the control thread saw it last.
#[derive(Debug, Default)]
pub(crate) struct Pressure(AtomicU8);

const LEVELS: [Level; 4] = [Level::Normal, Level::Warning, Level::Critical, Level::Blocked];

impl Pressure {
    pub(crate) fn set(&self, level: Level) {
        let number = LEVELS.iter().position(|other| *other == level).unwrap_or(0);
        self.0.store(u8::try_from(number).unwrap_or(0), Ordering::Relaxed);
    }

    pub(crate) fn level(&self) -> Level {
        LEVELS.get(usize::from(self.0.load(Ordering::Relaxed))).copied().unwrap_or(Level::Normal)
    }
}
