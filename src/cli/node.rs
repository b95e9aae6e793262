//! `grey node`: the machines of a cluster.

use grey_api::{NodeList, NodeStatus};

use super::error::CliError;
use super::output::{Output, harmless, table};
use super::run::connect;
use super::session::{Target, runtime};
use super::tenant::path_of;

/// How much of a node's identity a table shows: enough to name it.
const SHOWN_DIGITS: usize = 12;

/// Subcommands of `grey node`.
#[derive(clap::Subcommand)]
pub enum NodeCommand {
    /// Nodes, servers first
    List,
    /// A node
    Show {
        /// Its name, its identity, or the first digits of it
        node: String,
    },
    /// Keep a node out: nobody speaks with it, and what it runs goes elsewhere when its lease has ended
    Block {
        /// Its name, its identity, or the first digits of it
        node: String,
    },
    /// Take a node out of the cluster: a server hands on what it does and votes no longer, a worker gets no new work
    Remove {
        /// Its name, its identity, or the first digits of it
        node: String,
    },
    /// Let a node speak again
    Unblock {
        /// Its name, its identity, or the first digits of it
        node: String,
    },
}

/// What a node does, in a few words.
pub fn doing(node: &NodeStatus) -> String {
    let does = match (&node.presence, node.server) {
        (Some(presence), _) => harmless(presence),
        (None, Some(_)) if node.leads => "leads".to_owned(),
        (None, Some(_)) => "follows".to_owned(),
        (None, None) => "not announced".to_owned(),
    };
    if node.standing == "admitted" { does } else { harmless(&node.standing) }
}

fn listed(nodes: &[NodeStatus], wide: bool) -> String {
    let row = |node: &NodeStatus| {
        let number = node.server.map(|number| number.to_string());
        vec![
            if wide { node.id.clone() } else { node.id.chars().take(SHOWN_DIGITS).collect() },
            harmless(&node.name),
            harmless(&node.role),
            number.or_else(|| node.worker.clone()).unwrap_or_default(),
            doing(node),
            harmless(&node.tier),
            node.held.map(|held| held.to_string()).unwrap_or_default(),
            node.address.as_deref().map(harmless).unwrap_or_default(),
        ]
    };
    let rows: Vec<Vec<String>> = nodes.iter().map(row).collect();
    table(&["NODE", "NAME", "ROLE", "NUMBER", "STATE", "TIER", "HELD", "ADDRESS"], &rows)
}

fn described(node: &NodeStatus) -> String {
    let number = node.server.map(|number| format!(" {number}")).or_else(|| {
        let worker = node.worker.as_ref()?;
        Some(format!(" {}", harmless(worker)))
    });
    let mut text = format!(
        "node      {}\nname      {}\nrole      {}{}\nstate     {}, trusted as {}\n",
        node.id,
        harmless(&node.name),
        harmless(&node.role),
        number.unwrap_or_default(),
        doing(node),
        harmless(&node.tier),
    );
    if let Some(address) = &node.address {
        text.push_str(&format!("address   {}\n", harmless(address)));
    }
    if let Some(held) = node.held {
        text.push_str(&format!("work      {held} attempt(s)\n"));
    }
    text
}

/// Does what a subcommand of `grey node` says.
pub fn node(command: &NodeCommand, target: &Target, output: &Output) -> Result<u8, CliError> {
    let path = |node: &str| path_of("nodes", node, "a node's name or identity");
    runtime()?.block_on(async {
        let client = connect(target, output).await?;
        let nothing = serde_json::json!({});
        let one: NodeStatus = match command {
            NodeCommand::List => {
                let list: NodeList = client.get("/v1/nodes").await?;
                output.results(&list.nodes, || listed(&list.nodes, output.is_wide()))?;
                if list.nodes.is_empty() {
                    output.note("a local cluster is one process; `grey cluster status` shows it");
                }
                return Ok(0);
            }
            NodeCommand::Show { node } => client.get(&path(node)?).await?,
            NodeCommand::Block { node } => {
                client.post(&format!("{}/block", path(node)?), &nothing, None).await?
            }
            NodeCommand::Remove { node } => {
                client.post(&format!("{}/remove", path(node)?), &nothing, None).await?
            }
            NodeCommand::Unblock { node } => {
                client.post(&format!("{}/unblock", path(node)?), &nothing, None).await?
            }
        };
        output.result(&one, || described(&one))?;
        Ok(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(standing: &str, presence: Option<&str>, server: Option<u64>, leads: bool) -> NodeStatus {
        NodeStatus {
            id: "0".repeat(64),
            name: "n".to_owned(),
            role: "worker".to_owned(),
            standing: standing.to_owned(),
            server,
            leads,
            address: None,
            tier: "software".to_owned(),
            admitted_at_ms: 0,
            worker: None,
            presence: presence.map(str::to_owned),
            held: None,
        }
    }

    #[test]
    fn what_keeps_a_node_out_is_said_before_what_it_would_do() {
        for (node, state) in [
            (status("admitted", Some("present"), None, false), "present"),
            (status("blocked", Some("present"), None, false), "blocked"),
            (status("admitted", None, Some(1), true), "leads"),
            (status("admitted", None, Some(1), false), "follows"),
            (status("leaving", None, Some(1), false), "leaving"),
            (status("admitted", None, None, false), "not announced"),
        ] {
            assert_eq!(doing(&node), state);
        }
        let text = listed(&[status("admitted", Some("present"), None, false)], false);
        assert!(text.contains("000000000000  n"), "{text}");
    }
}
