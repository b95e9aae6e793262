//! The log of reports grows without a gap, and every replica has the same hashes and records of it.

use grey_core::{Effect, HistoryRecord};
use grey_proof::Digest;

use super::Checker;
use crate::fact::Fact;

#[derive(Default)]
pub struct Tree {
    hashes: Vec<Vec<Digest>>,
    records: Vec<Digest>,
}

/// Adds what is new and compares what is known.
fn keep<T: PartialEq>(all: &mut Vec<T>, position: u64, one: T, what: &str) -> Result<(), String> {
    match usize::try_from(position).ok().and_then(|at| all.get(at)) {
        Some(known) if *known == one => Ok(()),
        Some(_) => Err(format!("{what} {position} differs between replicas")),
        None if position == all.len() as u64 => {
            all.push(one);
            Ok(())
        }
        None => Err(format!("{what} {position} follows {}", all.len())),
    }
}

impl Checker for Tree {
    fn promise(&self) -> &'static str {
        "reports-are-kept"
    }

    fn observe(&mut self, _at_us: u64, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Applied { applied, .. } => {
                for effect in &applied.effects {
                    match effect {
                        Effect::LogGrew { position, hashes } => {
                            keep(&mut self.hashes, *position, hashes.clone(), "leaf")?;
                        }
                        Effect::History(HistoryRecord::Report(record)) => {
                            let bytes = postcard::to_allocvec(record).unwrap_or_default();
                            keep(&mut self.records, record.position, Digest::of(&bytes), "report")?;
                        }
                        _ => {}
                    }
                }
                Ok(())
            }
            Fact::Final { server, state, history } => {
                let size = self.records.len() as u64;
                if state.meta().log.size() != size || history.len() as u64 != size {
                    let (log, kept) = (state.meta().log.size(), history.len());
                    return Err(format!("server {server} counts {log} reports and kept {kept} of {size}"));
                }
                for (at, (position, digest)) in history.iter().enumerate() {
                    if *position != at as u64 || self.records.get(at) != Some(digest) {
                        return Err(format!("server {server} kept another report {position}"));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
