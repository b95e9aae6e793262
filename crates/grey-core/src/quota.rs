//! What a tenant may have.

use serde::{Deserialize, Serialize};

use crate::gcra::{Gcra, RateLimit};
use crate::ids::TenantId;
use crate::limits;
use crate::rejection::Rejection;

/// What a tenant may have, beyond what any tenant may. It holds at every index: whatever servers let in, what exceeds it is refused when it
/// is applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Tasks that wait, at most [`limits::TENANT_QUEUED_TASKS`]; that many where it is unset.
    pub queued_tasks: Option<u64>,
    /// Tasks submitted a second; as many as the server lets in where it is unset.
    pub rate: Option<RateLimit>,
}

/// A tenant's quota, and what of its rate is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaRow {
    /// The quota.
    pub quota: Quota,
    /// What of the rate is used, by cluster time.
    pub used: Gcra,
}

impl QuotaRow {
    /// How many tasks may wait.
    pub fn queued_tasks(&self) -> u64 {
        self.quota.queued_tasks.unwrap_or(limits::TENANT_QUEUED_TASKS)
    }

    /// With so many tasks more.
    ///
    /// # Errors
    /// [`Rejection::RateExceeded`]; then nothing was charged.
    pub(crate) fn charged(&self, tasks: u64, now_ms: u64) -> Result<QuotaRow, Rejection> {
        let Some(limit) = self.quota.rate else { return Ok(*self) };
        let used = self.used.charged(limit, tasks, now_ms);
        let used = used.map_err(|refusal| Rejection::RateExceeded { limit, refusal })?;
        Ok(QuotaRow { used, ..*self })
    }
}

/// Changes what a tenant may have. What it has is not touched: lowered below that, nothing more is accepted until it fits again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetTenantQuota {
    /// Which tenant.
    pub tenant: TenantId,
    /// Its share relative to others in thousandths, from 1 to [`limits::WEIGHT_MILLI`]; as it is where it is unset.
    pub weight_milli: Option<u32>,
    /// Tasks that wait: as it is where it is unset, and no quota of its own where it is set to none.
    pub queued_tasks: Option<Option<u64>>,
    /// Tasks a second: as it is where it is unset, and no quota of its own where it is set to none.
    pub rate: Option<Option<RateLimit>>,
}
