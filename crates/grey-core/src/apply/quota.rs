//! What a tenant may have.

use super::{Application, Stop};
use crate::effect::Answer;
use crate::limits;
use crate::quota::{Quota, QuotaRow, SetTenantQuota};
use crate::rejection::Rejection;

impl Application<'_> {
    pub(super) fn set_tenant_quota(&mut self, body: &SetTenantQuota) -> Result<Answer, Stop> {
        let Some(tenant) = self.rows.tenants.get_mut(&body.tenant) else {
            return Err(Rejection::UnknownTenant(body.tenant).into());
        };
        if let Some(weight_milli) = body.weight_milli {
            within("weight_milli", u64::from(weight_milli), 1, u64::from(limits::WEIGHT_MILLI))?;
            tenant.weight_milli = weight_milli;
        }
        let before = self.rows.quotas.get(&body.tenant).copied().unwrap_or_default();
        let quota = Quota {
            queued_tasks: body.queued_tasks.unwrap_or(before.quota.queued_tasks),
            rate: body.rate.unwrap_or(before.quota.rate),
        };
        if let Some(queued_tasks) = quota.queued_tasks {
            within("queued_tasks", queued_tasks, 0, limits::TENANT_QUEUED_TASKS)?;
        }
        if let Some(rate) = quota.rate {
            rate.validate().map_err(|wrong| wrong.into_iter().next().unwrap_or(Rejection::Malformed))?;
        }
        if quota == Quota::default() {
            self.rows.quotas.remove(&body.tenant);
        } else {
            // What was used of the rate is counted in tasks, and stays used under another rate.
            let used = if quota.rate.is_some() { before.used } else { Default::default() };
            self.rows.quotas.insert(body.tenant, QuotaRow { quota, used });
        }
        Ok(Answer::Identity)
    }
}

fn within(field: &str, given: u64, least: u64, most: u64) -> Result<(), Stop> {
    if (least..=most).contains(&given) {
        return Ok(());
    }
    let problem = if given < least { "is zero" } else { "is too large" };
    Err(Rejection::OutOfBounds { field: field.to_owned(), problem: problem.to_owned(), limit: most }.into())
}
