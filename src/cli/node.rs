//! `grey node`: the machines of a cluster.

use std::time::{Duration, Instant};

use grey_api::{Client, NodeList, NodeStatus};
use tokio::signal::unix::{SignalKind, signal};

use super::error::{ANSWER_IS_NO, CliError};
use super::output::{Output, harmless, table};
use super::run::connect;
use super::session::{Target, runtime};
use super::tenant::path_of;
use super::units;

/// How much of a node's identity a table shows: enough to name it.
const SHOWN_DIGITS: usize = 12;
/// How often a worker that is drained is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

const CORDON_EXAMPLES: &str = "\
Examples:
  grey node cordon worker1
  grey node uncordon worker1";
const DRAIN_EXAMPLES: &str = "\
Examples:
  grey node drain worker1
  grey node drain worker1 --wait 10m && ssh worker1 systemctl stop grey-worker

Exits with 1 when it still holds work after that time. It stays cordoned: `grey node uncordon` gives it work again.";

const QUARANTINE_EXAMPLES: &str = "\
Examples:
  grey node quarantine worker1
  grey node release worker1

It lasts 30 s, the next time a minute, and so on; then a few tasks have to succeed on the worker before it gets as many as before. To keep work
away for as long as you like, cordon it.";

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
    /// Give a worker no new work; what runs there goes on, and what it has not started runs elsewhere
    #[command(after_help = CORDON_EXAMPLES)]
    Cordon {
        /// Its name, its identity, or the first digits of it
        node: String,
    },
    /// Give a worker work again
    Uncordon {
        /// Its name, its identity, or the first digits of it
        node: String,
    },
    /// Cordon a worker and wait until nothing runs there any more, so that it can be stopped
    #[command(after_help = DRAIN_EXAMPLES)]
    Drain {
        /// Its name, its identity, or the first digits of it
        node: String,
        /// Wait no longer than this, such as 10m [default: until it holds nothing]
        #[arg(long, value_parser = units::duration_ms, value_name = "TIME")]
        wait: Option<u64>,
    },
    /// Give a worker no new work for a while, and then a little at first; what runs there goes on
    #[command(after_help = QUARANTINE_EXAMPLES)]
    Quarantine {
        /// Its name, its identity, or the first digits of it
        node: String,
    },
    /// End a worker's quarantine or probation, and forget the earlier ones
    Release {
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
        (Some(presence), _) => match node.health.as_deref() {
            None | Some("active") => harmless(presence),
            Some("suspect") if presence == "lost" => harmless(presence),
            Some("probation") => format!("{}, on probation", harmless(presence)),
            Some(health) => format!("{}, {}", harmless(presence), harmless(health)),
        },
        (None, Some(_)) if node.leads => "leads".to_owned(),
        (None, Some(_)) => "follows".to_owned(),
        (None, None) => "not announced".to_owned(),
    };
    match (node.standing.as_str(), node.cordoned) {
        ("admitted", false) => does,
        ("admitted", true) => format!("{does}, cordoned"),
        (standing, _) => harmless(standing),
    }
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
            node.version.as_deref().map(harmless).unwrap_or_default(),
            node.address.as_deref().map(harmless).unwrap_or_default(),
        ]
    };
    let rows: Vec<Vec<String>> = nodes.iter().map(row).collect();
    table(&["NODE", "NAME", "ROLE", "NUMBER", "STATE", "TIER", "HELD", "VERSION", "ADDRESS"], &rows)
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
    if let (Some(version), Some(level)) = (&node.version, node.feature_level) {
        text.push_str(&format!("version   {}, understands feature level {level}\n", harmless(version)));
    }
    if let Some(held) = node.held {
        text.push_str(&format!("work      {held} attempt(s)\n"));
    }
    if !node.shut_executors.is_empty() {
        let shut: Vec<String> = node.shut_executors.iter().map(|executor| harmless(executor)).collect();
        text.push_str(&format!(
            "shut      {}: failed too often lately, tried again within a minute\n",
            shut.join(", ")
        ));
    }
    text
}

/// How much a node holds; nothing before it announces itself.
fn held(node: &NodeStatus) -> u32 {
    node.held.unwrap_or(0)
}

/// Cordons a worker and waits until it holds nothing, with its progress on a terminal.
async fn drain(client: &Client, path: &str, wait_ms: Option<u64>, output: &Output) -> Result<u8, CliError> {
    let mut interrupts =
        signal(SignalKind::interrupt()).map_err(|error| CliError::io("watch", "for Ctrl-C", &error))?;
    let begun = Instant::now();
    let longest = wait_ms.map(Duration::from_millis);
    let mut status: NodeStatus = client.post(&format!("{path}/cordon"), &serde_json::json!({}), None).await?;
    while held(&status) > 0 && longest.is_none_or(|longest| begun.elapsed() < longest) {
        let left = longest.map_or(LOOK_AGAIN, |longest| longest.saturating_sub(begun.elapsed()));
        output.progress(&format!("{} attempt(s) are still there", held(&status)));
        let look = async {
            tokio::time::sleep(LOOK_AGAIN.min(left)).await;
            client.get::<NodeStatus>(path).await
        };
        status = tokio::select! {
            looked = look => looked?,
            _ = interrupts.recv() => {
                output.progress("");
                output.note("it stays cordoned");
                return Ok(130);
            }
        };
    }
    output.progress("");
    output.result(&status, || described(&status))?;
    if held(&status) == 0 {
        output.note("nothing runs there, and it stays cordoned");
        return Ok(0);
    }
    output.note(&format!("{} attempt(s) are still there, and it stays cordoned", held(&status)));
    Ok(ANSWER_IS_NO)
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
            NodeCommand::Drain { node, wait } => return drain(&client, &path(node)?, *wait, output).await,
            NodeCommand::Cordon { node } => {
                client.post(&format!("{}/cordon", path(node)?), &nothing, None).await?
            }
            NodeCommand::Uncordon { node } => {
                client.post(&format!("{}/uncordon", path(node)?), &nothing, None).await?
            }
            NodeCommand::Quarantine { node } => {
                client.post(&format!("{}/quarantine", path(node)?), &nothing, None).await?
            }
            NodeCommand::Release { node } => {
                client.post(&format!("{}/release", path(node)?), &nothing, None).await?
            }
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
            cordoned: false,
            server,
            leads,
            address: None,
            version: None,
            feature_level: None,
            tier: "software".to_owned(),
            admitted_at_ms: 0,
            worker: None,
            presence: presence.map(str::to_owned),
            health: None,
            held: None,
            shut_executors: Vec::new(),
        }
    }

    #[test]
    fn what_keeps_a_node_out_is_said_before_what_it_would_do() {
        for (node, state) in [
            (status("admitted", Some("present"), None, false), "present"),
            (status("blocked", Some("present"), None, false), "blocked"),
            (
                NodeStatus { cordoned: true, ..status("admitted", Some("present"), None, false) },
                "present, cordoned",
            ),
            (NodeStatus { cordoned: true, ..status("blocked", Some("lost"), None, false) }, "blocked"),
            (status("admitted", None, Some(1), true), "leads"),
            (status("admitted", None, Some(1), false), "follows"),
            (status("leaving", None, Some(1), false), "leaving"),
            (status("admitted", None, None, false), "not announced"),
        ] {
            assert_eq!(doing(&node), state);
        }
        for (presence, health, state) in [
            ("present", "active", "present"),
            ("present", "suspect", "present, suspect"),
            ("present", "quarantined", "present, quarantined"),
            ("present", "probation", "present, on probation"),
            ("lost", "suspect", "lost"),
            ("lost", "quarantined", "lost, quarantined"),
        ] {
            let health = Some(health.to_owned());
            let node = NodeStatus { health, ..status("admitted", Some(presence), None, false) };
            assert_eq!(doing(&node), state);
        }
        let text = listed(&[status("admitted", Some("present"), None, false)], false);
        assert!(text.contains("000000000000  n"), "{text}");
    }
}
