//! `grey cluster`.

use std::path::{Path, PathBuf};

use grey_api::{
    FeatureLevelRaised, JoinTokenCreated, JoinTokenRequest, LeadershipTransferred, TransferRequest,
};
use serde::Serialize;

use super::error::{CliError, REFUSED};
use super::node_config::ServerArguments;
use super::output::{Output, harmless};
use super::recovery::{RecoverArguments, RestoreArguments, SnapshotArguments};
use super::rekey::RekeyArguments;
use super::root;
use super::run::connect;
use super::session::{Target, runtime};
use super::status::status;
use super::units;

const INIT_EXAMPLES: &str = "\
Examples:
  grey cluster init --data-dir /var/lib/grey --advertise 10.0.0.1:7654
  grey server --data-dir /var/lib/grey --advertise 10.0.0.1:7654";
const TOKEN_EXAMPLES: &str = "\
Examples:
  grey cluster token --role server > server.token
  grey cluster token --role worker --valid 10m";
const SNAPSHOT_EXAMPLES: &str = "\
Examples:
  grey cluster snapshot monday.snapshot
  grey cluster snapshot --check monday.snapshot";
const TRANSFER_EXAMPLES: &str = "\
Examples:
  grey cluster transfer
  grey cluster transfer grey2";
const REKEY_EXAMPLES: &str = "\
Examples:
  grey cluster rekey --root-key safe/root.key";
const RESTORE_EXAMPLES: &str = "\
Examples:
  grey cluster restore monday.snapshot --root-key /safe/root.key --data-dir /var/lib/grey --advertise 10.0.0.1:7654
  grey server --data-dir /var/lib/grey --advertise 10.0.0.1:7654";
const RECOVER_EXAMPLES: &str = "\
Examples:
  grey cluster recover --yes --data-dir /var/lib/grey
  grey server --data-dir /var/lib/grey --advertise 10.0.0.1:7654";

/// What a join token is for.
#[derive(clap::Args)]
pub struct JoinTokenArguments {
    /// As what the node enters
    #[arg(long, value_parser = ["server", "worker"])]
    role: String,
    /// How long the token is good
    #[arg(long, default_value = "1h", value_parser = units::duration_ms, value_name = "TIME")]
    valid: u64,
}

/// What was founded.
#[derive(Serialize)]
struct Founded {
    cluster: String,
    ca_file: PathBuf,
    token_file: PathBuf,
    root_key_file: PathBuf,
    before: bool,
}

/// Founds a cluster; where that was done before, it says so and does nothing.
pub fn init(arguments: &ServerArguments, data_dir: Option<&Path>, output: &Output) -> Result<u8, CliError> {
    let config = arguments.config(data_dir)?;
    std::fs::create_dir_all(&config.data_dir)
        .map_err(|error| CliError::io("make", config.data_dir.display(), &error))?;
    let founded = grey_node::found(&config).map_err(|error| match error {
        grey_node::NodeError::FoundedOtherwise { .. } => {
            CliError { exit_status: REFUSED, ..CliError::failed(error.to_string()) }
                .hint("a server keeps both; another cluster needs a directory of its own: --data-dir")
        }
        error => CliError::failed(error.to_string()),
    })?;
    let result = Founded {
        cluster: founded.cluster.to_string(),
        ca_file: founded.ca_file,
        token_file: founded.token_file,
        root_key_file: founded.root_key_file,
        before: founded.before,
    };
    if result.before {
        output.note("the cluster was founded before; nothing was changed");
    }
    output.result(&result, || {
        format!(
            "cluster   {}\nroot      {} (clients are told to trust it: GREY_CA)\ntoken     {} (for an operator: GREY_TOKEN)\nroot key  {} (keep it elsewhere; no server needs it to run)\n",
            result.cluster,
            harmless(&result.ca_file.display().to_string()),
            harmless(&result.token_file.display().to_string()),
            harmless(&result.root_key_file.display().to_string()),
        )
    })?;
    Ok(0)
}

/// Subcommands of `grey cluster`.
#[derive(clap::Subcommand)]
pub enum ClusterCommand {
    /// Found a cluster whose first server is in the data directory: makes its keys and its first token. Nothing runs yet
    #[command(after_help = INIT_EXAMPLES)]
    Init(Box<ServerArguments>),
    /// Make a token with which one node may enter the cluster, once
    #[command(after_help = TOKEN_EXAMPLES)]
    Token(JoinTokenArguments),
    /// The cluster as its leader sees it; where none is in touch with a majority, what the server knows that answers, with exit status 4
    Status {
        /// As the server sees it that is asked, which may lag behind
        #[arg(long)]
        here: bool,
    },
    /// Have another server lead, such as before work on the one that does; says which one does then
    #[command(after_help = TRANSFER_EXAMPLES)]
    Transfer {
        /// Its name or its number [default: any that votes and has caught up]
        server: Option<String>,
    },
    /// After every server runs the new version: have the cluster write what only that understands, for good
    Upgrade,
    /// Write everything that the cluster has into a file, from which it can be restored
    #[command(after_help = SNAPSHOT_EXAMPLES)]
    Snapshot(SnapshotArguments),
    /// Make the data directory the first server of a cluster that goes on from a snapshot. Nothing runs yet
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore(Box<RestoreArguments>),
    /// Have the cluster go on with the server in the data directory alone, after a majority was lost for good. Nothing runs yet
    #[command(after_help = RECOVER_EXAMPLES)]
    Recover(RecoverArguments),
    /// Have another issuing key follow the current one, which the root key certifies on this machine
    #[command(after_help = REKEY_EXAMPLES)]
    Rekey(RekeyArguments),
    /// The root that a verifier keeps, to be given to `grey verify --root`
    Root {
        /// How many different servers must have signed the log's root under each proof that this root is given for [default: 1]
        #[arg(long, value_name = "SERVERS", value_parser = clap::value_parser!(u32).range(1..))]
        quorum: Option<u32>,
    },
}

/// Does what a subcommand of `grey cluster` says.
pub fn cluster(command: &ClusterCommand, target: &Target, output: &Output) -> Result<u8, CliError> {
    runtime()?.block_on(async {
        let client = connect(target, output).await?;
        match command {
            // What needs no cluster that answers is done elsewhere.
            ClusterCommand::Init(_)
            | ClusterCommand::Snapshot(_)
            | ClusterCommand::Restore(_)
            | ClusterCommand::Rekey(_)
            | ClusterCommand::Recover(_) => {}
            ClusterCommand::Token(arguments) => {
                let request = JoinTokenRequest { role: arguments.role.clone(), valid_ms: arguments.valid };
                let created: JoinTokenCreated = client.post("/v1/join-tokens", &request, None).await?;
                output.result(&created, || format!("{}\n", created.token))?;
            }
            ClusterCommand::Status { here } => {
                return status(client, *here, output).await;
            }
            ClusterCommand::Transfer { server } => {
                let request = TransferRequest { to: server.clone() };
                let now: LeadershipTransferred = client.post("/v1/cluster/transfer", &request, None).await?;
                if now.leader == now.before {
                    output.note("it led already; nothing was changed");
                }
                output.result(&now, || format!("{} leads, server {}\n", harmless(&now.name), now.leader))?;
            }
            ClusterCommand::Upgrade => {
                let nothing = serde_json::json!({});
                let now: FeatureLevelRaised = client.post("/v1/cluster/upgrade", &nothing, None).await?;
                if now.feature_level == now.before {
                    output.note(
                        "every server understands no newer level; `grey node list -o wide` says what each runs; nothing was changed",
                    );
                }
                output.result(&now, || format!("feature level {} is in force\n", now.feature_level))?;
            }
            ClusterCommand::Root { quorum } => {
                let bytes = client.get_bytes("/v1/cluster/root").await?;
                output.bytes(&root::asking(&bytes, *quorum)?)?;
            }
        }
        Ok(0)
    })
}
