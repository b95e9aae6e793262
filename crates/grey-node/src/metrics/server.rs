//! What a server knows of itself, and of the cluster while it leads.

use std::collections::BTreeMap;
use std::sync::Arc;

use grey_core::{Presence, Standing, State, Tenant, TenantId, Worker};
use grey_health::Level;
use grey_replica::Server;

use super::exposition::{Exposition, Labels, label};
use super::tally::{Submitted, Tally};
use super::worker::classes;

/// The most tenants that are told apart: those that were made first.
const MOST_TENANTS: usize = 200;
/// All others together. No tenant can be called so.
const OTHERS: &str = "_others";

/// What a worker can be, as far as the cluster has agreed on it.
const PRESENCES: [&str; 5] = ["present", "suspect", "probation", "quarantined", "lost"];

/// A server as it is now.
#[derive(Debug)]
pub(crate) struct ServerSample {
    term: u64,
    leads: bool,
    leader: u64,
    voters: u64,
    applied_index: u64,
    commit_index: u64,
    under_way: u64,
    level: Level,
    cluster: Option<ClusterSample>,
    tally: Tally,
    tenants: Vec<(TenantId, Arc<str>)>,
}

/// The cluster as its leader has it.
#[derive(Debug)]
struct ClusterSample {
    tenants: Vec<TenantSample>,
    workers: BTreeMap<&'static str, u64>,
    capacity: Capacity,
    jobs: u64,
    reports: u64,
    stale_placements: u64,
    refused_results: u64,
    quarantine_alerts: u64,
    shut_executors: u64,
    internal_bugs: u64,
}

#[derive(Debug, Clone, PartialEq)]
struct TenantSample {
    name: Arc<str>,
    pending: u64,
    held: u64,
    share: f64,
    weight: f64,
}

/// What all workers have together that can be reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Capacity {
    cpu_millicores: u128,
    memory_bytes: u128,
    slots: u128,
    held: u128,
}

impl Capacity {
    fn of<'a>(workers: impl Iterator<Item = &'a Worker>) -> Capacity {
        let mut all = Capacity::default();
        for worker in workers.filter(|worker| worker.presence == Presence::Present) {
            all.cpu_millicores += u128::from(worker.capacity.cpu_millicores);
            all.memory_bytes += u128::from(worker.capacity.memory_bytes);
            all.slots += u128::from(worker.slots);
            all.held += u128::from(worker.held);
        }
        all
    }

    /// The part that a tenant has of whatever it has the largest part of: what the planner compares, over the tenants' weights.
    fn share(&self, tenant: &Tenant) -> f64 {
        let part = |used: u64, all: u128| if all == 0 { 0.0 } else { used as f64 / all as f64 };
        part(tenant.usage.cpu_millicores, self.cpu_millicores)
            .max(part(tenant.usage.memory_bytes, self.memory_bytes))
            .max(part(tenant.held_tasks, self.slots))
    }
}

fn shut_executors(state: &State) -> u64 {
    let breakers = state.workers().keys().filter_map(|worker| state.breakers(*worker));
    breakers.flat_map(|row| &row.executors).filter(|breaker| breaker.is_shut()).count() as u64
}

fn presence(worker: &Worker) -> &'static str {
    if worker.presence == Presence::Lost {
        return "lost";
    }
    match worker.quarantine.standing {
        Standing::Active => "present",
        Standing::Suspect { .. } => "suspect",
        Standing::Quarantined { .. } => "quarantined",
        Standing::Probation { .. } => "probation",
    }
}

impl ClusterSample {
    /// Looks at each tenant and each worker once.
    fn of(state: &State) -> ClusterSample {
        let capacity = Capacity::of(state.workers().values());
        let mut workers: BTreeMap<&'static str, u64> = PRESENCES.map(|name| (name, 0)).into();
        for worker in state.workers().values() {
            *workers.entry(presence(worker)).or_default() += 1;
        }
        let tenants = state.tenants().values().map(|tenant| TenantSample {
            name: tenant.name.clone(),
            pending: tenant.queued_tasks,
            held: tenant.held_tasks,
            share: capacity.share(tenant),
            weight: f64::from(tenant.weight_milli) / 1_000.0,
        });
        let meta = state.meta();
        ClusterSample {
            tenants: told_apart(tenants),
            workers,
            capacity,
            jobs: state.jobs().len() as u64,
            reports: meta.log.size(),
            stale_placements: meta.stale_placements,
            refused_results: meta.refused_results,
            quarantine_alerts: meta.quarantine_alerts,
            shut_executors: shut_executors(state),
            internal_bugs: meta.internal_bugs,
        }
    }

    fn expose(&self, exposition: &mut Exposition) {
        let tasks = self.tenants.iter().flat_map(|tenant| {
            [("pending", tenant.pending), ("held", tenant.held)].map(|(state, tasks)| {
                ([label("tenant", &*tenant.name), label("state", state)].concat(), tasks)
            })
        });
        exposition.gauges("tasks", "Tasks that wait, and that workers hold", tasks);
        let of_tenants = |value: fn(&TenantSample) -> f64| {
            self.tenants.iter().map(move |tenant| (label("tenant", &*tenant.name), value(tenant)))
        };
        exposition.ratios(
            "tenant_share",
            "The part of the cluster that a tenant's tasks have, of whatever they have the largest part of",
            of_tenants(|tenant| tenant.share),
        );
        exposition.ratios(
            "tenant_weight",
            "The share that a tenant is given relative to others",
            of_tenants(|tenant| tenant.weight),
        );
        let workers = self.workers.iter().map(|(presence, count)| (label("presence", *presence), *count));
        exposition.gauges("workers", "Workers of the cluster", workers);
        let bounded = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
        exposition.gauge(
            "capacity_cpu_cores",
            "Processor cores of the workers that can be reached",
            self.capacity.cpu_millicores as f64 / 1_000.0,
        );
        exposition.bytes(
            "capacity_memory",
            "Memory of the workers that can be reached",
            bounded(self.capacity.memory_bytes),
        );
        exposition.gauge(
            "capacity_slots",
            "Attempts that those workers want to hold",
            bounded(self.capacity.slots),
        );
        exposition.gauge("held_attempts", "Attempts that they hold", bounded(self.capacity.held));
        exposition.gauge("jobs", "Jobs that have not ended", self.jobs);
        exposition.total("reports", "Results in the cluster's log", self.reports);
        exposition.total(
            "stale_placements",
            "Placements that were dropped because the state had moved on",
            self.stale_placements,
        );
        exposition.total(
            "refused_results",
            "Results that were refused because another attempt or a cancel came first",
            self.refused_results,
        );
        exposition.gauge(
            "shut_executors",
            "Executors that failed too often and get no work, or little",
            self.shut_executors,
        );
        exposition.total(
            "quarantine_alerts",
            "Workers and executors that belonged out of work while too many were out of it already",
            self.quarantine_alerts,
        );
        exposition.total(
            "internal_bugs",
            "Entries whose effects were discarded because an invariant broke",
            self.internal_bugs,
        );
    }
}

/// The first tenants as they are, and the rest as one.
fn told_apart(tenants: impl Iterator<Item = TenantSample>) -> Vec<TenantSample> {
    let mut found: Vec<TenantSample> = Vec::new();
    let mut others: Option<TenantSample> = None;
    for tenant in tenants {
        if found.len() < MOST_TENANTS {
            found.push(tenant);
            continue;
        }
        match &mut others {
            None => others = Some(TenantSample { name: OTHERS.into(), ..tenant }),
            Some(others) => {
                others.pending = others.pending.saturating_add(tenant.pending);
                others.held = others.held.saturating_add(tenant.held);
                others.share += tenant.share;
                others.weight += tenant.weight;
            }
        }
    }
    found.extend(others);
    found
}

impl ServerSample {
    /// Looks at a server: what it costs follows the number of tenants and workers, never that of jobs or tasks.
    pub(crate) fn of(server: &Server, tally: &Tally) -> ServerSample {
        let (replica, state) = (server.replica(), server.state());
        ServerSample {
            term: replica.term(),
            leads: replica.leads(),
            leader: replica.leader(),
            voters: replica.membership().voters.len() as u64,
            applied_index: state.applied_index(),
            commit_index: replica.commit_index(),
            under_way: server.under_way() as u64,
            level: server.level(),
            cluster: replica.leads().then(|| ClusterSample::of(state)),
            tally: tally.clone(),
            tenants: state.tenants().iter().map(|(id, tenant)| (*id, tenant.name.clone())).collect(),
        }
    }

    /// What each tenant has submitted, the first ones told apart.
    fn submitted(&self) -> Vec<(Labels, Submitted)> {
        let mut found: Vec<(Labels, Submitted)> = Vec::new();
        let mut others: Option<Submitted> = None;
        for (id, name) in &self.tenants {
            let submitted = self.tally.of(*id);
            if found.len() < MOST_TENANTS {
                found.push((label("tenant", &**name), submitted));
                continue;
            }
            let others = others.get_or_insert_default();
            others.submissions += submitted.submissions;
            others.tasks += submitted.tasks;
        }
        found.extend(others.map(|others| (label("tenant", OTHERS), others)));
        found
    }

    pub(super) fn expose(&self, exposition: &mut Exposition) {
        exposition.gauge("raft_term", "The term", self.term);
        exposition.gauge("raft_leads", "1 while this server leads, else 0", u64::from(self.leads));
        exposition.gauge("raft_leader", "The number of the server that leads, 0 when unknown", self.leader);
        exposition.gauge("raft_voters", "Servers that vote", self.voters);
        exposition.gauge("raft_applied_index", "The last entry that was applied here", self.applied_index);
        exposition.gauge("raft_commit_index", "The last entry known here to be committed", self.commit_index);
        exposition.gauge(
            "proposals_under_way",
            "Proposals of which nobody knows yet what became",
            self.under_way,
        );
        let level = match self.level {
            Level::Normal => 0u64,
            Level::Warning => 1,
            Level::Critical => 2,
            Level::Blocked => 3,
        };
        exposition.gauge(
            "pressure_level",
            "How full the door is: 0 normal, 1 warning, 2 critical, 3 blocked",
            level,
        );
        let submitted = self.submitted();
        let of_tenants = |value: fn(&Submitted) -> u64| {
            submitted.iter().map(move |(labels, submitted)| (labels.clone(), value(submitted)))
        };
        exposition.totals(
            "submissions",
            "Submissions that became jobs while this server led",
            of_tenants(|submitted| submitted.submissions),
        );
        exposition.totals(
            "submitted_tasks",
            "Tasks of those submissions",
            of_tenants(|submitted| submitted.tasks),
        );
        let attempts = classes().map(|class| (label("outcome", class), self.tally.attempts(class)));
        exposition.totals("attempts_ended", "Attempts that ended while this server led", attempts);
        let tasks = self.tally.tasks_ended().map(|(state, tasks)| (label("state", state), tasks));
        exposition.totals("tasks_ended", "Tasks of jobs that ended while this server led", tasks);
        if let Some(cluster) = &self.cluster {
            cluster.expose(exposition);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_tenants_are_told_apart_and_the_rest_is_one() {
        let tenant = |number: usize| TenantSample {
            name: format!("t{number}").into(),
            pending: 1,
            held: 2,
            share: 0.5,
            weight: 1.0,
        };
        let within = told_apart((0..MOST_TENANTS).map(tenant));
        assert_eq!(within.len(), MOST_TENANTS);
        assert!(within.iter().all(|tenant| &*tenant.name != OTHERS));
        let beyond = told_apart((0..MOST_TENANTS + 3).map(tenant));
        assert_eq!(beyond.len(), MOST_TENANTS + 1);
        let others = TenantSample { name: OTHERS.into(), pending: 3, held: 6, share: 1.5, weight: 3.0 };
        assert_eq!(beyond.last(), Some(&others));
    }
}
