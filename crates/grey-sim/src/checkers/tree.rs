//! The log of reports grows without a gap, and every replica has the same hashes and records of it.

use std::collections::BTreeMap;
use std::ops::Range;

use grey_core::{Effect, HistoryRecord};
use grey_proof::Digest;

use super::Checker;
use crate::fact::Fact;

#[derive(Default)]
pub struct Tree {
    hashes: Vec<Vec<Digest>>,
    records: Vec<Digest>,
    /// How many reports each server has come to in its present life.
    reached: BTreeMap<u64, u64>,
    /// Reports that a server took over with a whole state: it never had their records.
    skipped: BTreeMap<u64, Vec<Range<u64>>>,
}

impl Tree {
    /// A server stands at so many reports without having applied what led there. What it had before is kept.
    fn stands_at(&mut self, server: u64, reports: u64) {
        let reached = self.reached.insert(server, reports).unwrap_or(0);
        if reached < reports {
            self.skipped.entry(server).or_default().push(reached..reports);
        }
    }
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
            Fact::Applied { server, applied, .. } => {
                for effect in &applied.effects {
                    match effect {
                        Effect::LogGrew { position, hashes } => {
                            keep(&mut self.hashes, *position, hashes.clone(), "leaf")?;
                        }
                        Effect::History(HistoryRecord::Report(record)) => {
                            let bytes = postcard::to_allocvec(record).unwrap_or_default();
                            keep(&mut self.records, record.position, Digest::of(&bytes), "report")?;
                            self.reached.insert(*server, record.position + 1);
                        }
                        _ => {}
                    }
                }
                Ok(())
            }
            Fact::Restored { server, reports, .. } | Fact::Installed { server, reports, .. } => {
                self.stands_at(*server, *reports);
                Ok(())
            }
            Fact::Final { server, state, history } => {
                let size = self.records.len() as u64;
                let log = state.meta().log.size();
                if log != size {
                    return Err(format!("server {server} counts {log} reports of {size}"));
                }
                let skipped = self.skipped.get(server).map(Vec::as_slice).unwrap_or_default();
                let has = |position: &u64| !skipped.iter().any(|range| range.contains(position));
                let expected: Vec<u64> = (0..size).filter(has).collect();
                if !history.keys().eq(&expected) {
                    let (kept, of) = (history.len(), expected.len());
                    return Err(format!("server {server} kept {kept} of {of} reports, without {skipped:?}"));
                }
                for (position, digest) in history.iter() {
                    let known = usize::try_from(*position).ok().and_then(|at| self.records.get(at));
                    if known != Some(digest) {
                        return Err(format!("server {server} kept another report {position}"));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
