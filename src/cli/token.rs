//! `grey token`: who may speak to a cluster.

use std::time::{SystemTime, UNIX_EPOCH};

use grey_api::{Role, TokenCreated, TokenList, TokenRequest, TokenStatus};

use super::error::CliError;
use super::output::{Output, harmless, table};
use super::run::connect;
use super::session::{Target, runtime};
use super::tenant::path_of;
use super::units;

/// How much of a token's identity a table shows: enough to revoke it.
const SHOWN_DIGITS: usize = 12;

/// Subcommands of `grey token`.
#[derive(clap::Subcommand)]
#[command(after_help = "\
Examples:
  grey token create ci --role submitter --tenant acme --valid 90d > token
  grey context add production https://grey.example.com:7654 --ca ca.pem --token-file token
  grey token revoke 3f9a0c51d2e7

Roles: viewer sees what a tenant's jobs do; submitter submits and changes them, too; tenant-admin makes the tenant's tokens, too;
operator runs the cluster; auditor sees all work and the cluster, and changes nothing.")]
pub enum TokenCommand {
    /// Make a token; it is printed this once, and the cluster keeps its digest only
    Create(CreateArguments),
    /// Tokens, without their secrets
    List,
    /// Take a token back: what it shows from then on is refused
    Revoke {
        /// Its identity, or the first digits of it
        id: String,
    },
}

/// Arguments of `grey token create`.
#[derive(clap::Args)]
pub struct CreateArguments {
    /// What people call it: the submitter's name
    name: String,
    /// What it is for: viewer, submitter, tenant-admin, operator or auditor
    #[arg(long, value_name = "ROLE")]
    role: Role,
    /// For which tenant [default: the asking token's] [env: GREY_TENANT]
    #[arg(long, short, value_name = "TENANT")]
    tenant: Option<String>,
    /// How long it is good
    #[arg(long, default_value = "90d", value_parser = units::duration_ms, value_name = "TIME")]
    valid: u64,
}

/// When a time is, seen from now: the largest unit of it.
pub fn until(at_ms: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let left_ms = at_ms.saturating_sub(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    const UNITS: [(u64, &str); 4] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")];
    let unit = UNITS.iter().find(|(unit_ms, _)| left_ms >= *unit_ms);
    unit.map_or_else(|| "past".to_owned(), |(unit_ms, name)| format!("in {} {name}", left_ms / unit_ms))
}

fn listed(tokens: &[TokenStatus], wide: bool) -> String {
    let row = |token: &TokenStatus| {
        let id = if wide { token.id.clone() } else { token.id.chars().take(SHOWN_DIGITS).collect() };
        vec![
            id,
            harmless(&token.name),
            token.role.to_string(),
            token.tenant.as_deref().map(harmless).unwrap_or_default(),
            if token.expired { "expired".to_owned() } else { until(token.expires_at_ms) },
            harmless(&token.created_by),
        ]
    };
    let rows: Vec<Vec<String>> = tokens.iter().map(row).collect();
    table(&["TOKEN", "NAME", "ROLE", "TENANT", "EXPIRES", "MADE BY"], &rows)
}

/// Does what a subcommand of `grey token` says.
pub fn token(command: &TokenCommand, target: &Target, output: &Output) -> Result<u8, CliError> {
    runtime()?.block_on(async {
        let client = connect(target, output).await?;
        match command {
            TokenCommand::Create(arguments) => {
                let usual = || target.tenant().filter(|_| arguments.role.is_of_a_tenant());
                let request = TokenRequest {
                    name: arguments.name.clone(),
                    role: arguments.role,
                    tenant: arguments.tenant.clone().or_else(usual),
                    valid_ms: arguments.valid,
                };
                let created: TokenCreated = client.post("/v1/tokens", &request, None).await?;
                output.result(&created, || format!("{}\n", created.token))?;
                let status = &created.status;
                let tenant = status.tenant.as_ref().map(|tenant| format!(" of tenant {tenant}"));
                output.note(&format!(
                    "token {} of the role {}{}, good for {}; it is not shown again",
                    status.id.chars().take(SHOWN_DIGITS).collect::<String>(),
                    status.role,
                    tenant.unwrap_or_default(),
                    units::shown_span(arguments.valid),
                ));
            }
            TokenCommand::List => {
                let list: TokenList = client.get("/v1/tokens").await?;
                output.results(&list.tokens, || listed(&list.tokens, output.is_wide()))?;
            }
            TokenCommand::Revoke { id } => {
                let path = path_of("tokens", id, "the identity of a token; `grey token list` shows them")?;
                let revoked: TokenStatus = client.delete(&path).await?;
                output.result(&revoked, || format!("{}\n", revoked.id))?;
                output.note(&format!("token `{}` is good for nothing from now on", harmless(&revoked.name)));
            }
        }
        Ok(0)
    })
}
