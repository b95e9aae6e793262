//! What was committed is the same on every replica, in the same order, and stays.
//!
//! The state's hash is a chain over every change since the first entry, so hashes that are equal at an index mean that
//! everything before was equal too.

use std::collections::BTreeMap;

use grey_proof::Digest;

use super::Checker;
use crate::fact::Fact;

#[derive(Default)]
pub struct Agreement {
    /// Term and, where it was seen, hash of the state at an index.
    applied: BTreeMap<u64, (u64, Option<Digest>)>,
    /// How far each server has come in its present life.
    servers: BTreeMap<u64, u64>,
}

impl Agreement {
    fn agree(&mut self, server: u64, index: u64, hash: Digest) -> Result<(), String> {
        match self.applied.get_mut(&index) {
            Some((_, Some(other))) if *other != hash => {
                Err(format!("server {server} has another state at index {index}"))
            }
            Some((_, known)) => {
                *known = Some(hash);
                Ok(())
            }
            None => Err(format!("server {server} has a state at index {index}, which nobody applied")),
        }
    }
}

impl Checker for Agreement {
    fn promise(&self) -> &'static str {
        "replicas-agree"
    }

    fn observe(&mut self, _at_us: u64, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Applied { server, term, index, state, .. } => {
                let before = self.servers.insert(*server, *index).unwrap_or(0);
                if *index != before + 1 {
                    return Err(format!("server {server} applied {index} after {before}"));
                }
                let (known, _) = self.applied.entry(*index).or_insert((*term, None));
                if known != term {
                    return Err(format!(
                        "index {index} is of term {known}, and of {term} on server {server}"
                    ));
                }
                // Several entries may have been applied at once; the state is that after the last.
                if state.applied_index() == *index {
                    self.agree(*server, *index, state.hash())
                } else {
                    Ok(())
                }
            }
            Fact::Restored { server, index, hash, .. } | Fact::Installed { server, index, hash, .. } => {
                self.servers.insert(*server, *index);
                match hash {
                    Some(hash) if *index > 0 => self.agree(*server, *index, *hash),
                    _ => Ok(()),
                }
            }
            Fact::Final { server, state, .. } => {
                let highest = self.applied.keys().next_back().copied().unwrap_or(0);
                if state.applied_index() < highest {
                    return Err(format!(
                        "{highest} was applied, and server {server} ends at {}",
                        state.applied_index()
                    ));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
