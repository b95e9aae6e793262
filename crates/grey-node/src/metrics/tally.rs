//! What the control thread counts of the cluster's work while its server leads.

use std::collections::BTreeMap;

use grey_core::{Counts, TenantId};

/// What a tenant has submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Submitted {
    /// Submissions that became jobs.
    pub(crate) submissions: u64,
    /// Their tasks.
    pub(crate) tasks: u64,
}

/// Plain numbers of one thread. Only a leader counts, so that the sum over all servers is the cluster's.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// Entries up to this index were committed when the server started: an earlier life has counted them.
    counted_through: u64,
    /// Attempts that ended, by the class of their outcome: as many keys as there are classes.
    attempts: BTreeMap<&'static str, u64>,
    tasks_completed: u64,
    tasks_failed: u64,
    tasks_cancelled: u64,
    submitted: BTreeMap<TenantId, Submitted>,
}

impl Tally {
    /// Nothing so far; entries up to an index were counted before.
    pub(crate) fn after(counted_through: u64) -> Tally {
        Tally { counted_through, ..Tally::default() }
    }

    /// Whether an entry is to be counted here.
    pub(crate) fn is_due(&self, index: u64, leads: bool) -> bool {
        leads && index > self.counted_through
    }

    /// An attempt has ended.
    pub(crate) fn attempt_ended(&mut self, outcome: &'static str) {
        *self.attempts.entry(outcome).or_default() += 1;
    }

    /// A job has ended.
    pub(crate) fn job_ended(&mut self, counts: &Counts) {
        self.tasks_completed += counts.completed;
        self.tasks_failed += counts.failed;
        self.tasks_cancelled += counts.cancelled;
    }

    /// A submission has become a job.
    pub(crate) fn submitted(&mut self, tenant: TenantId, tasks: u64) {
        let submitted = self.submitted.entry(tenant).or_default();
        submitted.submissions += 1;
        submitted.tasks += tasks;
    }

    /// Attempts that ended with an outcome of a class.
    pub(crate) fn attempts(&self, outcome: &str) -> u64 {
        self.attempts.get(outcome).copied().unwrap_or_default()
    }

    /// Tasks of jobs that ended, by the state that they ended in.
    pub(crate) fn tasks_ended(&self) -> [(&'static str, u64); 3] {
        [
            ("completed", self.tasks_completed),
            ("failed", self.tasks_failed),
            ("cancelled", self.tasks_cancelled),
        ]
    }

    /// What a tenant has submitted.
    pub(crate) fn of(&self, tenant: TenantId) -> Submitted {
        self.submitted.get(&tenant).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_counts_what_no_earlier_life_has_counted_and_a_follower_nothing() {
        let tally = Tally::after(10);
        for (index, leads, due) in [(10, true, false), (11, true, true), (11, false, false)] {
            assert_eq!(tally.is_due(index, leads), due, "entry {index}, leads: {leads}");
        }
    }

    #[test]
    fn submissions_are_counted_for_their_tenant() {
        let mut tally = Tally::default();
        tally.submitted(TenantId(2), 5);
        tally.submitted(TenantId(2), 1);
        assert_eq!(tally.of(TenantId(2)), Submitted { submissions: 2, tasks: 6 });
        assert_eq!(tally.of(TenantId(3)), Submitted::default());
    }
}
