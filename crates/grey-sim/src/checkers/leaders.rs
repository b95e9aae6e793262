//! Never two leaders in a term.

use std::collections::BTreeMap;

use super::Checker;
use crate::fact::Fact;

/// Who led in which term.
#[derive(Default)]
pub struct Leaders(BTreeMap<u64, u64>);

impl Checker for Leaders {
    fn promise(&self) -> &'static str {
        "one-leader-a-term"
    }

    fn observe(&mut self, _at_us: u64, fact: &Fact<'_>) -> Result<(), String> {
        let Fact::Leads { server, term } = fact else { return Ok(()) };
        match self.0.insert(*term, *server) {
            Some(other) if other != *server => Err(format!("{other} and {server} lead in term {term}")),
            _ => Ok(()),
        }
    }
}
