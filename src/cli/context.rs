//! `grey context`: the clusters that this user knows by name.

use std::io::Read;
use std::path::PathBuf;

use grey_api::Address;
use serde::Serialize;

use super::contexts::{Context, Contexts, LOCAL, check_name, read_token, read_trust, well_formed};
use super::error::CliError;
use super::output::{Output, harmless, table};

/// The most bytes that are read of a token on standard input.
const LARGEST_TOKEN_BYTES: u64 = 4 * 1024;

/// Subcommands of `grey context`.
#[derive(clap::Subcommand)]
#[command(after_help = "\
Examples:
  grey context add production https://a.example.com:7654 https://b.example.com:7654 --ca ca.pem --token-file token --use
  grey --context production job list
  grey context use local                  back to the local cluster

What decides, first to last: --addr, --context or --data-dir; GREY_ADDR or GREY_CONTEXT; GREY_DATA; the current context;
the local cluster. A cluster that does not answer is never replaced by another one.")]
pub enum ContextCommand {
    /// A context, without its token
    Show {
        /// Which one [default: the current one]
        name: Option<String>,
    },
    /// Every context
    List,
    /// Keep a cluster under a name
    Add(AddArguments),
    /// Mean a context when nothing else is said
    Use {
        /// Which one; `local` is the local cluster
        name: String,
    },
    /// Forget a context
    Remove {
        /// Which one
        name: String,
    },
}

/// Arguments of `grey context add`.
#[derive(clap::Args)]
pub struct AddArguments {
    /// Its name
    name: String,
    /// The cluster's servers, such as https://grey.example.com:7654; the next is tried when one does not answer
    #[arg(required = true, value_name = "ADDRESS")]
    addresses: Vec<String>,
    /// The cluster's root certificate (PEM), which becomes part of the context; needed for https
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The token, or `-` to read it from standard input; it becomes part of the context
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_file")]
    token: Option<String>,
    /// The file that the token is read from each time
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Whose tasks are submitted where nothing else says it
    #[arg(long, short, value_name = "TENANT")]
    tenant: Option<String>,
    /// Use it from now on
    #[arg(long = "use")]
    and_use: bool,
    /// Take the place of a context of the same name
    #[arg(long)]
    replace: bool,
}

/// A context as it is shown: everything but the token itself.
#[derive(Serialize)]
struct Shown<'a> {
    id: &'a str,
    current: bool,
    addresses: &'a [String],
    tenant: Option<&'a str>,
    token: String,
    ca: Option<&'a str>,
}

fn shown<'a>(name: &'a str, context: &'a Context, contexts: &Contexts) -> Shown<'a> {
    let token = match (&context.token, &context.token_file) {
        (_, Some(path)) => format!("in {}", path.display()),
        (Some(_), None) => "kept".to_owned(),
        (None, None) => "none".to_owned(),
    };
    Shown {
        id: name,
        current: contexts.current.as_deref() == Some(name),
        addresses: &context.addresses,
        tenant: context.tenant.as_deref(),
        token,
        ca: context.ca.as_deref(),
    }
}

fn listed(contexts: &[Shown<'_>]) -> String {
    let row = |context: &Shown<'_>| {
        vec![
            context.id.to_owned(),
            if context.current { "yes" } else { "" }.to_owned(),
            context.tenant.map(harmless).unwrap_or_default(),
            harmless(&context.token),
            harmless(&context.addresses.join(", ")),
        ]
    };
    let rows: Vec<Vec<String>> = contexts.iter().map(row).collect();
    table(&["NAME", "CURRENT", "TENANT", "TOKEN", "ADDRESSES"], &rows)
}

fn described(context: &Shown<'_>) -> String {
    format!(
        "context    {}{}\naddresses  {}\ntenant     {}\ntoken      {}\nroot       {}\n",
        context.id,
        if context.current { " (current)" } else { "" },
        harmless(&context.addresses.join(", ")),
        context.tenant.map_or_else(|| "the token's".to_owned(), harmless),
        harmless(&context.token),
        if context.ca.is_some() { "kept; `-o json` prints it" } else { "none" },
    )
}

/// Does what a subcommand of `grey context` says.
pub fn context(command: &ContextCommand, output: &Output) -> Result<u8, CliError> {
    let mut contexts = Contexts::read()?;
    match command {
        ContextCommand::Show { name } => {
            let Some(name) = name.as_ref().or(contexts.current.as_ref()) else {
                output.note("there is no current context: the local cluster is meant");
                return Ok(super::error::ANSWER_IS_NO);
            };
            let one = shown(name, contexts.get(name)?, &contexts);
            output.result(&one, || described(&one))?;
        }
        ContextCommand::List => {
            let all: Vec<Shown<'_>> =
                contexts.named.iter().map(|(name, one)| shown(name, one, &contexts)).collect();
            output.results(&all, || listed(&all))?;
        }
        ContextCommand::Add(arguments) => add(arguments, contexts, output)?,
        ContextCommand::Use { name } => {
            if name == LOCAL {
                contexts.current = None;
            } else {
                contexts.get(name)?;
                contexts.current = Some(name.clone());
            }
            contexts.write()?;
            output.note(&format!("from now on, `{name}` is meant when nothing else is said"));
        }
        ContextCommand::Remove { name } => {
            if contexts.named.remove(name).is_none() {
                return Err(contexts.unknown(name));
            }
            let was_current = contexts.current.as_deref() == Some(name);
            if was_current {
                contexts.current = None;
            }
            contexts.write()?;
            output.note(&format!("context `{name}` is forgotten"));
            if was_current {
                output.note("from now on, the local cluster is meant when nothing else is said");
            }
        }
    }
    Ok(0)
}

fn add(arguments: &AddArguments, mut contexts: Contexts, output: &Output) -> Result<(), CliError> {
    let name = &arguments.name;
    check_name(name)?;
    if contexts.named.contains_key(name) && !arguments.replace {
        return Err(
            CliError::usage(format!("there is a context `{name}` already")).hint("--replace takes its place")
        );
    }
    let addresses = grey_api::addresses(&arguments.addresses.join(","))?;
    let ca = arguments.ca.as_deref().map(|path| read_trust(path).map(|(pem, _)| pem)).transpose()?;
    if let (Some(https), None) = (addresses.iter().find(|address| address.is_https()), &ca) {
        let error =
            CliError::usage(format!("{https} shows a certificate, and nothing says which to believe"));
        return Err(error.hint("give the cluster's root certificate: --ca FILE"));
    }
    let token_file = arguments.token_file.as_deref().map(std::path::absolute).transpose();
    let token_file = token_file.map_err(|error| CliError::io("use", "--token-file", &error))?;
    if let Some(path) = &token_file {
        read_token(path)?;
    }
    let context = Context {
        addresses: addresses.iter().map(Address::to_string).collect(),
        tenant: arguments.tenant.clone(),
        token: arguments.token.as_deref().map(given_token).transpose()?,
        token_file,
        ca,
    };
    contexts.named.insert(name.clone(), context);
    if arguments.and_use {
        contexts.current = Some(name.clone());
    }
    contexts.write()?;
    output.note(&format!("context `{name}` is kept"));
    if !arguments.and_use {
        output.note(&format!("next: grey context use {name}"));
    }
    Ok(())
}

fn given_token(given: &str) -> Result<String, CliError> {
    let mut text = given.to_owned();
    if given == "-" {
        text.clear();
        let read = std::io::stdin().take(LARGEST_TOKEN_BYTES).read_to_string(&mut text);
        read.map_err(|error| CliError::io("read", "standard input", &error))?;
    }
    well_formed(text.trim())
        .ok_or_else(|| CliError::usage("the token is not one: one line of visible characters"))
}
