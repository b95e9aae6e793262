//! Wishes about an attempt, also before it is asked for: to stop it, to change its time-out.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use grey_agent::StopReason;
use grey_core::AttemptId;

use crate::keeper::Keeper;
use crate::message::{Halted, ToShim};

/// Why an attempt was not asked for.
pub(crate) enum NotAsked {
    /// It was to be stopped before.
    Stopped(StopReason),
    /// The shim could not be reached.
    Failed(io::Error),
}

/// What is wished of one attempt.
pub(crate) struct Wishes {
    attempt: AttemptId,
    state: Mutex<State>,
}

struct State {
    stop: Option<StopReason>,
    timeout_ms: u64,
    /// Whether the shim was asked for it, and so is told what is wished.
    is_asked_for: bool,
}

impl Wishes {
    /// Of an attempt that was not asked for yet, and whose time-out is that, in milliseconds.
    pub(crate) fn before(attempt: AttemptId, timeout_ms: u64) -> Wishes {
        Wishes { attempt, state: Mutex::new(State { stop: None, timeout_ms, is_asked_for: false }) }
    }

    /// Of one that a shim holds.
    pub(crate) fn during(attempt: AttemptId, timeout_ms: u64) -> Wishes {
        Wishes { attempt, state: Mutex::new(State { stop: None, timeout_ms, is_asked_for: true }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics between two changes that belong together, so a poisoned state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the attempt, with the time-out that it is to have, unless it is to be stopped.
    pub(crate) fn begin(&self, ask: impl FnOnce(u64) -> io::Result<()>) -> Result<(), NotAsked> {
        let mut state = self.state();
        if let Some(reason) = state.stop {
            return Err(NotAsked::Stopped(reason));
        }
        ask(state.timeout_ms).map_err(NotAsked::Failed)?;
        state.is_asked_for = true;
        Ok(())
    }

    /// It is to be stopped.
    pub(crate) fn stop(&self, reason: StopReason, keeper: &Keeper) {
        let mut state = self.state();
        if !state.is_asked_for {
            let urgent = reason == StopReason::Infrastructure;
            state.stop = Some(if urgent { reason } else { state.stop.unwrap_or(reason) });
            return;
        }
        let (why, gently) = match reason {
            StopReason::Cancelled => (Halted::Cancelled, true),
            StopReason::Infrastructure => (Halted::Infrastructure, false),
        };
        keeper.say(ToShim::Halt(self.attempt, why, gently));
    }

    /// It is to have another time-out, in milliseconds.
    pub(crate) fn change_timeout(&self, timeout_ms: u64, keeper: &Keeper) {
        let mut state = self.state();
        state.timeout_ms = timeout_ms;
        if state.is_asked_for {
            keeper.say(ToShim::ChangeTimeout(self.attempt, timeout_ms));
        }
    }

    /// The time-out that it has, in milliseconds.
    pub(crate) fn timeout_ms(&self) -> u64 {
        self.state().timeout_ms
    }
}
