//! The command line: one file a subcommand.

mod bench;
mod choice;
mod cluster;
mod config;
mod context;
mod contexts;
mod dev;
mod doctor;
mod error;
mod events;
#[doc(hidden)]
pub mod fuzzing;
mod inputs;
mod job;
mod junit;
mod listing;
mod node;
mod node_config;
mod output;
mod recovery;
mod rekey;
mod root;
mod run;
mod serve;
mod session;
mod sim;
mod status;
mod stream;
mod submit;
mod task;
mod task_file;
mod tenant;
mod token;
mod top;
mod units;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use error::CliError;
use output::{Format, Output};
use session::Target;

const EXAMPLES: &str = "\
Examples:
  grey run -- echo hello                     run a command as a task on the local cluster
  grey run --proof hello.json -- echo hello  and keep the signed proof of it
  grey submit job.toml --wait                run the tasks of a file
  grey verify hello.json                     check a proof, offline
  grey job list                              what was submitted
  grey top                                   the cluster at work, live
  grey events                                what happens to jobs, as it happens
  grey context list                          the clusters that are known by name
  grey doctor                                what is enforced on this machine

Exit status of `run`: the task's own, 124 time-out, 125 Grey's failure or refusal, 126 not executable,
127 not found, 128+n signal n. Of everything else: 0 done, 1 the answer is no, 3 refused, 4 unreachable.
2 is wrong usage everywhere.";

/// A task cluster whose results can be proved.
#[derive(Parser)]
#[command(name = "grey", version, about, after_help = EXAMPLES, max_term_width = 110)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes.
#[derive(clap::Args, Clone)]
struct Global {
    /// The local cluster, its data there [env: GREY_DATA] [default: $XDG_DATA_HOME/grey, or ~/.local/share/grey]
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The cluster at an address, such as https://grey.example.com:7654, 127.0.0.1:7654 or unix:PATH, or at several separated
    /// by commas; its token is taken from GREY_TOKEN, its root certificate from the file GREY_CA [env: GREY_ADDR]
    #[arg(long, global = true, value_name = "ADDRESS")]
    addr: Option<String>,
    /// The cluster that `grey context add` kept under a name [env: GREY_CONTEXT]
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// How to print results
    #[arg(
        long,
        short,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value = "table",
        hide_default_value = true
    )]
    output: Format,
    /// Print results as JSON: `--output json`
    #[arg(long, global = true, overrides_with = "output")]
    json: bool,
    /// Print results only
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Run a command as a task and wait for it
    Run(Box<run::RunArguments>),
    /// Submit a job from a task file
    Submit(submit::SubmitArguments),
    /// Run the local cluster in the foreground, reachable over loopback with a token
    Dev(dev::DevArguments),
    /// End the local cluster's background process; its data stays
    Down,
    /// Look at tasks
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// Look at jobs
    #[command(subcommand)]
    Job(job::JobCommand),
    /// Check a proof, offline
    Verify(verify::VerifyArguments),
    /// Run a server of a cluster
    Server(Box<node_config::ServerArguments>),
    /// Run a worker of a cluster
    ///
    /// What runs outlives this process until its lease ends, a few seconds after it was last in touch with the cluster: started
    /// again by then on the same directory, it goes on with everything. To end it for good, drain it first (`grey node drain`).
    Worker(Box<node_config::WorkerArguments>),
    /// Found a cluster, let nodes in, and look at it
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Watch a cluster at work: who leads, what tenants run, how full its machines are
    #[command(after_help = top::EXAMPLES)]
    Top(top::TopArguments),
    /// What happens to every job, as it happens, a line each, until Ctrl-C
    #[command(after_help = events::EXAMPLES)]
    Events,
    /// Look at the machines of a cluster, free some of work, and keep some out
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Make tenants, and look at them
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// Make tokens, and take them back
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Look at a node's configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Keep clusters under names, and choose one
    #[command(subcommand)]
    Context(context::ContextCommand),
    /// Say what is enforced on this machine, and what is not and why
    Doctor,
    /// Measure this machine with a cluster of its own
    Bench(bench::BenchArguments),
    /// Prove the promises on a simulated cluster under faults, or show the seed that breaks them
    Sim(sim::SimArguments),
    /// Print the JSON Schema of task files
    Schema,
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// The local cluster's background process
    #[command(name = "__local", hide = true)]
    Local(serve::LocalArguments),
}

/// Parses the arguments and does what they say.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version go to stdout, complaints to stderr; a closed stream is no failure of theirs.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let format = if arguments.global.json { Format::Json } else { arguments.global.output };
    let output = Output::new(format, arguments.global.quiet);
    match dispatch(arguments, &output) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            output.complain(&error);
            ExitCode::from(error.exit_status)
        }
    }
}

fn dispatch(arguments: Arguments, output: &Output) -> Result<u8, CliError> {
    let Arguments { global, command } = arguments;
    let target = || Target::of(&global);
    let local = || Target::local(&global);
    match command {
        Command::Run(run) => {
            run::run(&run, &target().map_err(CliError::in_run)?, output).map_err(CliError::in_run)
        }
        Command::Submit(submit) => submit::submit(&submit, &target()?, output),
        Command::Dev(dev) => dev::dev(&dev, &local()?, output),
        Command::Down => dev::down(&local()?, output),
        Command::Task(command) => task::task(&command, &target()?, output),
        Command::Job(command) => job::job(&command, &target()?, output),
        Command::Verify(verify) => verify::verify(&verify, target().ok().as_ref(), output),
        Command::Server(server) => serve::server(&server, node_directory(&global).as_deref()),
        Command::Worker(worker) => serve::worker(&worker, node_directory(&global).as_deref()),
        Command::Cluster(cluster::ClusterCommand::Init(arguments)) => {
            cluster::init(&arguments, node_directory(&global).as_deref(), output)
        }
        Command::Cluster(cluster::ClusterCommand::Snapshot(arguments)) => {
            recovery::snapshot(&arguments, &target()?, output)
        }
        Command::Cluster(cluster::ClusterCommand::Restore(arguments)) => {
            recovery::restore(&arguments, node_directory(&global).as_deref(), output)
        }
        Command::Cluster(cluster::ClusterCommand::Recover(arguments)) => {
            recovery::recover(&arguments, node_directory(&global).as_deref(), output)
        }
        Command::Cluster(cluster::ClusterCommand::Rekey(arguments)) => {
            rekey::rekey(&arguments, &target()?, output)
        }
        Command::Cluster(command) => cluster::cluster(&command, &target()?, output),
        Command::Top(arguments) => top::top(&arguments, &target()?, output),
        Command::Events => events::events(&target()?, output),
        Command::Node(command) => node::node(&command, &target()?, output),
        Command::Tenant(command) => tenant::tenant(&command, &target()?, output),
        Command::Token(command) => token::token(&command, &target()?, output),
        Command::Config(command) => config::config(&command, output),
        Command::Context(command) => context::context(&command, output),
        Command::Doctor => doctor::doctor(target().as_ref(), output),
        Command::Bench(bench) => bench::bench(&bench, output),
        Command::Sim(arguments) => sim::sim(&arguments, output),
        Command::Schema => {
            let text = serde_json::to_string_pretty(&task_file::schema()).unwrap_or_default();
            output.line(&text)?;
            Ok(0)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "grey", &mut script);
            output.bytes(&script)?;
            Ok(0)
        }
        Command::Local(arguments) => Ok(serve::local(&arguments, local()?.directory()?.to_path_buf())),
    }
}

/// The directory of a node, where an option or the variable names one.
fn node_directory(global: &Global) -> Option<PathBuf> {
    global.data_dir.clone().or_else(|| std::env::var_os("GREY_DATA").map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        Arguments::command().debug_assert();
    }
}
