//! Nothing is used beyond what there is: on a worker that runs attempts, and in the state at applied indexes.

use std::collections::BTreeMap;

use grey_core::{AttemptId, Resources};
use grey_proof::Digest;

use super::Checker;
use crate::fact::Fact;

/// The whole state is checked at one of so many indexes.
pub const CHECKED_ONE_OF: u64 = 4;

#[derive(Default)]
pub struct Capacity {
    running: BTreeMap<Digest, BTreeMap<AttemptId, Resources>>,
}

impl Checker for Capacity {
    fn promise(&self) -> &'static str {
        "within-capacity"
    }

    fn observe(&mut self, _at_us: u64, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Started { worker, attempt, needs, capacity } => {
                let running = self.running.entry(*worker).or_default();
                running.insert(*attempt, *needs);
                let sum = running.values().try_fold(Resources::default(), |sum, one| sum.checked_add(one));
                // What fits no longer after a worker came back smaller may still run there alone.
                if running.len() > 1 && !sum.is_some_and(|sum| sum.fits(capacity)) {
                    return Err(format!("a worker runs {sum:?} of {capacity:?}"));
                }
                Ok(())
            }
            Fact::Stopped { worker, attempt, .. } => {
                self.running.entry(*worker).or_default().remove(attempt);
                Ok(())
            }
            Fact::WorkerDied { worker } => {
                self.running.remove(worker);
                Ok(())
            }
            Fact::Applied { first: true, index, state, placed, .. } if state.applied_index() == *index => {
                for one in *placed {
                    let worker = one.worker;
                    let row = state.workers().get(&worker).ok_or("an assignment to an unknown worker")?;
                    let spec = state.spec(one.group).ok_or("an assignment of an unknown task")?;
                    if row.held > row.slots || !row.suits(spec) {
                        let (held, slots) = (row.held, row.slots);
                        return Err(format!("{worker} was given what it cannot hold: {held} of {slots}"));
                    }
                }
                if index.is_multiple_of(CHECKED_ONE_OF) { state.check() } else { Ok(()) }
            }
            Fact::Final { state, .. } => state.check(),
            _ => Ok(()),
        }
    }
}
