//! `grey tenant`: who submits to a cluster.

use grey_api::{
    QuotaRequest, SubmissionRate, TenantDefaults, TenantList, TenantQuota, TenantRequest, TenantStatus,
};

use super::error::CliError;
use super::output::{Output, harmless, table};
use super::run::connect;
use super::session::{Target, runtime};
use super::units;

const QUOTA_EXAMPLES: &str = "\
Examples:
  grey tenant quota team-a --queued 10000 --rate 500 --burst 5000
  grey tenant quota team-a --weight 2000 --rate none";

/// Subcommands of `grey tenant`.
#[derive(clap::Subcommand)]
pub enum TenantCommand {
    /// Make a tenant
    Create(CreateArguments),
    /// Tenants, and what each has under way
    List,
    /// A tenant
    Show {
        /// Its name
        name: String,
    },
    /// Change what a tenant may have, and its share. What is not named stays
    #[command(after_help = QUOTA_EXAMPLES)]
    Quota(QuotaArguments),
    /// Take no more work of a tenant; what it has goes on
    Suspend {
        /// Its name
        name: String,
    },
    /// Take work of a tenant again
    Resume {
        /// Its name
        name: String,
    },
}

/// Arguments of `grey tenant create`.
#[derive(clap::Args)]
pub struct CreateArguments {
    /// Its name: lower-case letters, digits and hyphens
    name: String,
    /// Share relative to others, in thousandths
    #[arg(long, default_value_t = 1_000, value_name = "THOUSANDTHS")]
    weight: u32,
    /// Share of processors of a task that says none, such as 500m or 2 [default: 1]
    #[arg(long, value_parser = units::cpu_millicores, value_name = "CORES")]
    cpu: Option<u64>,
    /// Memory of a task that says none [default: 64MiB]
    #[arg(long, value_parser = units::size_bytes, value_name = "SIZE")]
    memory: Option<u64>,
    /// Longest run of an attempt of a task that says none [default: 24h]
    #[arg(long, value_parser = units::duration_ms, value_name = "TIME")]
    timeout: Option<u64>,
    /// The most that an attempt of a task that says none may write [default: 64MiB]
    #[arg(long, value_parser = units::size_bytes, value_name = "SIZE")]
    output_limit: Option<u64>,
    /// Priority of a task that says none [default: 100]
    #[arg(long, value_name = "LEVEL")]
    priority: Option<u8>,
}

/// Arguments of `grey tenant quota`.
#[derive(clap::Args)]
pub struct QuotaArguments {
    /// The tenant's name
    name: String,
    /// Share relative to others, in thousandths
    #[arg(long, value_name = "THOUSANDTHS")]
    weight: Option<u32>,
    /// Tasks that may wait; `none` for as many as for every tenant
    #[arg(long, value_parser = count_or_none, value_name = "TASKS")]
    queued: Option<CountOrNone>,
    /// Tasks a second that it may submit in the long run; `none` for as many as for every tenant
    #[arg(long, value_parser = count_or_none, value_name = "TASKS")]
    rate: Option<CountOrNone>,
    /// Tasks that it may submit at once after a pause [default: as many as in a second]
    #[arg(long, requires = "rate", value_name = "TASKS")]
    burst: Option<u64>,
}

/// A bound, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CountOrNone(Option<u64>);

fn count_or_none(text: &str) -> Result<CountOrNone, String> {
    if text == "none" {
        return Ok(CountOrNone(None));
    }
    let count = text.parse().map_err(|_| format!("`{text}` is no whole number, and not `none`"))?;
    Ok(CountOrNone(Some(count)))
}

impl QuotaArguments {
    fn request(&self) -> Result<QuotaRequest, CliError> {
        if self.weight.is_none() && self.queued.is_none() && self.rate.is_none() {
            return Err(CliError::usage(
                "nothing is named that is to change: --weight, --queued or --rate".to_owned(),
            ));
        }
        if self.burst.is_some() && self.rate == Some(CountOrNone(None)) {
            return Err(CliError::usage("--burst says nothing without a rate".to_owned()));
        }
        let rate =
            |rate: u64| SubmissionRate { tasks_per_second: rate, burst_tasks: self.burst.unwrap_or(rate) };
        Ok(QuotaRequest {
            weight_milli: self.weight,
            queued_tasks: self.queued.map(|queued| queued.0),
            rate: self.rate.map(|given| given.0.map(rate)),
        })
    }
}

impl CreateArguments {
    fn request(&self) -> TenantRequest {
        let usual = TenantDefaults::default();
        TenantRequest {
            name: self.name.clone(),
            weight_milli: self.weight,
            defaults: TenantDefaults {
                cpu_millicores: self.cpu.unwrap_or(usual.cpu_millicores),
                memory_bytes: self.memory.unwrap_or(usual.memory_bytes),
                disk_bytes: usual.disk_bytes,
                timeout_ms: self.timeout.unwrap_or(usual.timeout_ms),
                output_limit_bytes: self.output_limit.unwrap_or(usual.output_limit_bytes),
                priority: self.priority.unwrap_or(usual.priority),
            },
        }
    }
}

fn standing(tenant: &TenantStatus) -> String {
    if tenant.suspended { "suspended" } else { "active" }.to_owned()
}

fn quota(quota: &TenantQuota) -> String {
    let queued = quota.queued_tasks.map(|queued| format!("{queued} task(s) may wait"));
    let rate = quota
        .rate
        .map(|rate| format!("{} task(s) a second, {} at once", rate.tasks_per_second, rate.burst_tasks));
    let said: Vec<String> = queued.into_iter().chain(rate).collect();
    if said.is_empty() { "none of its own".to_owned() } else { said.join("; ") }
}

fn described(tenant: &TenantStatus) -> String {
    let defaults = &tenant.defaults;
    format!(
        "tenant    {} ({}), weight {}\nquota     {}\nwork      {} task(s) wait, {} run, with {}m of processors and {} of memory\ndefaults  {}m of processors, {} of memory, time-out {}, output limit {}, priority {}\n",
        harmless(&tenant.name),
        standing(tenant),
        tenant.weight_milli,
        quota(&tenant.quota),
        tenant.queued_tasks,
        tenant.held_tasks,
        tenant.used_cpu_millicores,
        units::shown_size(tenant.used_memory_bytes),
        defaults.cpu_millicores,
        units::shown_size(defaults.memory_bytes),
        units::shown_span(defaults.timeout_ms),
        units::shown_size(defaults.output_limit_bytes),
        defaults.priority,
    )
}

fn listed(tenants: &[TenantStatus]) -> String {
    let row = |tenant: &TenantStatus| {
        vec![
            harmless(&tenant.name),
            standing(tenant),
            tenant.weight_milli.to_string(),
            tenant.queued_tasks.to_string(),
            tenant.held_tasks.to_string(),
            format!("{}m", tenant.used_cpu_millicores),
            units::shown_size(tenant.used_memory_bytes),
        ]
    };
    let rows: Vec<Vec<String>> = tenants.iter().map(row).collect();
    table(&["TENANT", "STANDING", "WEIGHT", "WAITING", "RUNNING", "CPU", "MEMORY"], &rows)
}

/// The path of something that a user named; what would lead elsewhere is refused.
pub fn path_of(collection: &str, name: &str, what: &str) -> Result<String, CliError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !name.is_empty() && name.bytes().all(plain) && name != "." && name != ".." {
        return Ok(format!("/v1/{collection}/{name}"));
    }
    Err(CliError::usage(format!("`{}` is not {what}", harmless(name))))
}

/// Does what a subcommand of `grey tenant` says.
pub fn tenant(command: &TenantCommand, target: &Target, output: &Output) -> Result<u8, CliError> {
    let path = |name: &str| path_of("tenants", name, "a tenant's name");
    runtime()?.block_on(async {
        let client = connect(target, output).await?;
        let nothing = serde_json::json!({});
        let one: TenantStatus = match command {
            TenantCommand::List => {
                let list: TenantList = client.get("/v1/tenants").await?;
                output.results(&list.tenants, || listed(&list.tenants))?;
                return Ok(0);
            }
            TenantCommand::Create(arguments) => {
                client.post("/v1/tenants", &arguments.request(), None).await?
            }
            TenantCommand::Quota(arguments) => {
                let path = format!("{}/quota", path(&arguments.name)?);
                client.post(&path, &arguments.request()?, None).await?
            }
            TenantCommand::Show { name } => client.get(&path(name)?).await?,
            TenantCommand::Suspend { name } => {
                client.post(&format!("{}/suspend", path(name)?), &nothing, None).await?
            }
            TenantCommand::Resume { name } => {
                client.post(&format!("{}/resume", path(name)?), &nothing, None).await?
            }
        };
        output.result(&one, || described(&one))?;
        if matches!(command, TenantCommand::Create(_)) {
            output.note(&format!("next: grey token create NAME --role submitter --tenant {}", one.name));
        }
        Ok(0)
    })
}
