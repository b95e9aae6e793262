//! Checkers: each is told what happens and says when a promise is broken. None looks into a node.

mod agreement;
mod capacity;
mod completions;
mod conservation;
mod fairness;
mod history;
mod leaders;
mod leases;
mod linearizability;
mod quotas;
mod resting;
mod submissions;
mod tree;

use crate::fact::Fact;

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Which one: the checker's name, or what the world itself saw.
    pub promise: &'static str,
    /// What happened instead.
    pub what: String,
}

/// One promise, watched.
pub trait Checker {
    /// The promise.
    fn promise(&self) -> &'static str;

    /// Something happened.
    fn observe(&mut self, at_us: u64, fact: &Fact<'_>) -> Result<(), String>;

    /// How often it gave up without knowing whether the promise held.
    fn undecided(&self) -> u64 {
        0
    }
}

/// All of them.
pub struct Checkers(Vec<Box<dyn Checker>>);

impl Checkers {
    /// Checkers that have seen nothing yet.
    pub fn new() -> Checkers {
        Checkers(vec![
            Box::new(leaders::Leaders::default()),
            Box::new(agreement::Agreement::default()),
            Box::new(tree::Tree::default()),
            Box::new(submissions::Submissions::default()),
            Box::new(completions::Completions::default()),
            Box::new(conservation::Conservation::default()),
            Box::new(capacity::Capacity::default()),
            Box::new(leases::Leases::default()),
            Box::new(history::History::default()),
            Box::new(resting::Resting::default()),
            Box::new(quotas::Quotas::default()),
            Box::new(fairness::Fairness::default()),
        ])
    }

    /// Tells all of them; the first broken promise.
    pub fn observe(&mut self, at_us: u64, fact: &Fact<'_>) -> Result<(), Broken> {
        for checker in &mut self.0 {
            let promise = checker.promise();
            checker.observe(at_us, fact).map_err(|what| Broken { promise, what })?;
        }
        Ok(())
    }

    /// How often one of them gave up without knowing.
    pub fn undecided(&self) -> u64 {
        self.0.iter().map(|checker| checker.undecided()).sum()
    }
}
