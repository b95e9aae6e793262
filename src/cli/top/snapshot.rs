//! What there is to see of a cluster at one time.

use std::collections::BTreeMap;

use grey_api::{
    Client, ClientError, ClusterStatus, NodeList, NodeStatus, TenantList, TenantStatus, WorkerStatus,
};
use serde::Serialize;

use super::super::node::doing;

/// A look at a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// The cluster's identity.
    pub cluster: String,
    /// The number of the server that leads, 0 when unknown.
    pub leader: Option<u64>,
    /// The term.
    pub term: u64,
    /// Servers that vote.
    pub voters: Vec<u64>,
    /// The last applied entry.
    pub applied_index: u64,
    /// How full the leader's door is.
    pub pressure: String,
    /// Why no new work is taken, if none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusing: Option<String>,
    /// Jobs that have not ended.
    pub jobs_live: u64,
    /// Attempts that ended within the last minute.
    pub attempts_ended_in_last_minute: u64,
    /// Tenants, the busiest first.
    pub tenants: Vec<TenantView>,
    /// Machines, servers first.
    pub nodes: Vec<NodeView>,
}

/// A tenant at work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TenantView {
    /// Its name.
    pub name: String,
    /// Whether it may submit nothing.
    pub suspended: bool,
    /// Tasks that wait.
    pub pending_tasks: u64,
    /// Tasks that workers hold.
    pub held_tasks: u64,
    /// The part of the cluster that those have, of whatever they have the largest part of, in thousandths.
    pub share_permille: u64,
    /// Share relative to others, in thousandths.
    pub weight_milli: u32,
}

/// A machine at work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// `server`, `worker`, or both in one process.
    pub role: String,
    /// What it does, or what keeps it from that.
    pub state: String,
    /// What it holds, where it is a worker that has announced itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<Load>,
}

/// How much of a worker is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Load {
    /// Attempts that it holds.
    pub held: u32,
    /// Attempts that it wants to hold.
    pub slots: u32,
    /// Processors that those ask for, in thousandths of what it has; above 1000 when some wait for others.
    pub cpu_permille: u64,
    /// Memory that they ask for, likewise.
    pub memory_permille: u64,
}

/// A part in thousandths; of nothing, nothing.
fn permille(part: u64, all: u64) -> u64 {
    let found = (u128::from(part) * 1_000).checked_div(u128::from(all)).unwrap_or(0);
    u64::try_from(found).unwrap_or(u64::MAX)
}

fn load(worker: &WorkerStatus) -> Load {
    Load {
        held: worker.held,
        slots: worker.slots,
        cpu_permille: permille(worker.asked_cpu_millicores, worker.cpu_millicores),
        memory_permille: permille(worker.asked_memory_bytes, worker.memory_bytes),
    }
}

/// The machines. A local cluster lists none: it is one process, which is both.
fn nodes(cluster: &ClusterStatus, listed: &[NodeStatus]) -> Vec<NodeView> {
    if listed.is_empty() {
        let local = cluster.workers.iter().map(|worker| NodeView {
            name: worker.name.clone(),
            role: "server and worker".to_owned(),
            state: worker.presence.clone(),
            load: Some(load(worker)),
        });
        return local.collect();
    }
    let workers: BTreeMap<&str, &WorkerStatus> =
        cluster.workers.iter().map(|worker| (worker.id.as_str(), worker)).collect();
    let shown = listed.iter().map(|node| NodeView {
        name: node.name.clone(),
        role: node.role.clone(),
        state: doing(node),
        load: node.worker.as_deref().and_then(|id| workers.get(id)).map(|worker| load(worker)),
    });
    shown.collect()
}

fn tenants(cluster: &ClusterStatus, listed: &[TenantStatus]) -> Vec<TenantView> {
    let present = || cluster.workers.iter().filter(|worker| worker.presence != "lost");
    let all = |value: fn(&WorkerStatus) -> u64| present().map(value).fold(0, u64::saturating_add);
    let (cpu, memory) = (all(|worker| worker.cpu_millicores), all(|worker| worker.memory_bytes));
    let slots = all(|worker| worker.slots.into());
    let mut shown: Vec<TenantView> = listed
        .iter()
        .map(|tenant| TenantView {
            name: tenant.name.clone(),
            suspended: tenant.suspended,
            pending_tasks: tenant.queued_tasks,
            held_tasks: tenant.held_tasks,
            share_permille: permille(tenant.used_cpu_millicores, cpu)
                .max(permille(tenant.used_memory_bytes, memory))
                .max(permille(tenant.held_tasks, slots)),
            weight_milli: tenant.weight_milli,
        })
        .collect();
    let rank = |tenant: &TenantView| (tenant.share_permille, tenant.held_tasks, tenant.pending_tasks);
    shown.sort_by(|left, right| rank(right).cmp(&rank(left)).then_with(|| left.name.cmp(&right.name)));
    shown
}

impl Snapshot {
    /// Looks at a cluster, as its leader sees it.
    pub async fn of(client: &Client) -> Result<Snapshot, ClientError> {
        let cluster: ClusterStatus = client.get("/v1/cluster").await?;
        let listed: NodeList = client.get("/v1/nodes").await?;
        let tenants: TenantList = client.get("/v1/tenants").await?;
        Ok(Snapshot::from_parts(cluster, &listed.nodes, &tenants.tenants))
    }

    fn from_parts(cluster: ClusterStatus, listed: &[NodeStatus], of_tenants: &[TenantStatus]) -> Snapshot {
        Snapshot {
            tenants: tenants(&cluster, of_tenants),
            nodes: nodes(&cluster, listed),
            cluster: cluster.cluster,
            leader: cluster.leader,
            term: cluster.term,
            voters: cluster.voters,
            applied_index: cluster.applied_index,
            pressure: cluster.pressure,
            refusing: cluster.refusing,
            jobs_live: cluster.jobs_live,
            attempts_ended_in_last_minute: cluster.attempts_ended_in_last_minute,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(workers: &[(&str, &str, u64, u64, u32)]) -> ClusterStatus {
        let workers: Vec<serde_json::Value> = workers
            .iter()
            .map(|(id, presence, cpu, asked, held)| {
                serde_json::json!({
                    "id": id, "node": "", "name": format!("host-{id}"), "sandbox": "", "presence": presence, "held": held,
                    "slots": 10, "cpu_millicores": cpu, "memory_bytes": 1_000, "asked_cpu_millicores": asked,
                    "asked_memory_bytes": 250,
                })
            })
            .collect();
        let status = serde_json::json!({
            "cluster": "c", "class": "lab", "version": "0", "server": 1, "leader": 1, "term": 3, "voters": [1], "applied_index": 9,
            "state_hash": "", "reports": 0, "jobs_submitted": 0, "tasks_submitted": 0, "jobs_live": 2, "stale_placements": 0,
            "refused_results": 0, "attempts_ended_in_last_minute": 60, "pressure": "normal", "workers": workers, "data_dir": "",
            "process_id": 1, "retention": serde_json::to_value(grey_api::RetentionStatus::default()).unwrap(),
        });
        serde_json::from_value(status).unwrap()
    }

    fn tenant(name: &str, waiting: u64, held: u64, cpu: u64) -> TenantStatus {
        TenantStatus {
            name: name.to_owned(),
            suspended: false,
            weight_milli: 1_000,
            defaults: grey_api::TenantDefaults::default(),
            quota: Default::default(),
            queued_tasks: waiting,
            held_tasks: held,
            used_cpu_millicores: cpu,
            used_memory_bytes: 0,
        }
    }

    #[test]
    fn a_tenant_s_share_is_its_largest_part_of_what_can_be_reached_and_the_busiest_comes_first() {
        let workers = [("w1", "present", 4_000, 3_000, 3), ("w2", "lost", 4_000, 0, 0)];
        let of_tenants = [tenant("a", 7, 0, 0), tenant("b", 0, 1, 2_000), tenant("c", 9, 4, 100)];
        let snapshot = Snapshot::from_parts(cluster(&workers), &[], &of_tenants);
        let found: Vec<(&str, u64)> =
            snapshot.tenants.iter().map(|tenant| (tenant.name.as_str(), tenant.share_permille)).collect();
        // Half of the processors; four of ten slots; nothing.
        assert_eq!(found, [("b", 500), ("c", 400), ("a", 0)]);
    }

    #[test]
    fn a_local_cluster_is_one_machine_and_others_are_as_they_are_listed() {
        let workers = [("w1", "present", 4_000, 6_000, 3)];
        let local = Snapshot::from_parts(cluster(&workers), &[], &[]);
        let load = Load { held: 3, slots: 10, cpu_permille: 1_500, memory_permille: 250 };
        let machine = NodeView {
            name: "host-w1".to_owned(),
            role: "server and worker".to_owned(),
            state: "present".to_owned(),
            load: Some(load),
        };
        assert_eq!(local.nodes, [machine]);

        let node = |name: &str, server: Option<u64>, worker: Option<&str>, standing: &str| NodeStatus {
            id: String::new(),
            name: name.to_owned(),
            role: if server.is_some() { "server" } else { "worker" }.to_owned(),
            standing: standing.to_owned(),
            cordoned: false,
            server,
            leads: server == Some(1),
            address: None,
            version: None,
            feature_level: None,
            tier: String::new(),
            admitted_at_ms: 0,
            worker: worker.map(str::to_owned),
            presence: worker.map(|_| "present".to_owned()),
            health: None,
            held: None,
            shut_executors: Vec::new(),
        };
        let listed = [
            node("s1", Some(1), None, "admitted"),
            node("s2", Some(2), None, "admitted"),
            node("a", None, Some("w1"), "admitted"),
            node("b", None, None, "blocked"),
        ];
        let several = Snapshot::from_parts(cluster(&workers), &listed, &[]);
        let found: Vec<(&str, &str, Option<Load>)> =
            several.nodes.iter().map(|node| (node.name.as_str(), node.state.as_str(), node.load)).collect();
        let expected = [
            ("s1", "leads", None),
            ("s2", "follows", None),
            ("a", "present", Some(load)),
            ("b", "blocked", None),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_part_of_nothing_is_nothing() {
        for (part, all, expected) in
            [(0, 0, 0), (5, 0, 0), (1, 3, 333), (3, 2, 1_500), (u64::MAX, 1, u64::MAX)]
        {
            assert_eq!(permille(part, all), expected, "{part} of {all}");
        }
    }
}
