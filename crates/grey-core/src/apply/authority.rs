//! Another issuing key, and who left that knows the current one.

use super::{Application, Stop};
use crate::authority::{AuthorityRow, CurrentIssuer, SetIssuingAuthority};
use crate::effect::Answer;
use crate::identity::{IdentityKey, IdentityRow};
use crate::level::AUTHORITY_LEVEL;
use crate::limits;
use crate::rejection::Rejection;

fn not_followed<T>(why: &str) -> Result<T, Stop> {
    Err(Rejection::NotAdmitted(format!("the issuing key is not taken: {why}")).into())
}

impl Application<'_> {
    pub(super) fn set_issuing_authority(&mut self, body: SetIssuingAuthority) -> Result<Answer, Stop> {
        if self.rows.base.nodes().next().is_none() {
            return not_followed("the cluster is one process, and has none");
        }
        let current = self.authority_row().current;
        if current.as_ref().map(|current| current.issuer) != body.follows {
            return not_followed("another one became current meanwhile");
        }
        if current.is_some_and(|current| body.serial <= current.serial) {
            return not_followed("its serial number is not higher than that of the current one");
        }
        let longest = body.wall_ms.saturating_add(limits::AUTHORITY_MS);
        if body.not_after_wall_ms <= body.wall_ms || body.not_after_wall_ms > longest {
            return Err(Rejection::OutOfBounds {
                field: "not_after".to_owned(),
                problem: "is past, or too far away".to_owned(),
                limit: limits::AUTHORITY_MS,
            }
            .into());
        }
        let cluster = self.rows.meta.cluster.unwrap_or_default();
        if let Some((id, bytes)) = body.previous {
            self.keep_certificate(cluster, id, bytes)?;
        }
        let (issuer, bytes) = body.issuer;
        if self.rows.identity.get(&IdentityKey::Certificate(issuer)).is_some() {
            return not_followed("its certificate is known already");
        }
        self.keep_certificate(cluster, issuer, bytes)?;
        let (serial, not_after_wall_ms, since_wall_ms) = (body.serial, body.not_after_wall_ms, body.wall_ms);
        let current = Some(CurrentIssuer { issuer, serial, not_after_wall_ms, since_wall_ms });
        self.keep_authority(AuthorityRow { current, servers_left: 0 });
        Ok(Answer::Identity)
    }

    /// Servers belong to the cluster no more that know the issuing key. Below the level that the row came with nobody keeps count.
    pub(super) fn servers_left(&mut self, servers: usize) {
        if servers == 0 || self.rows.meta.feature_level < AUTHORITY_LEVEL {
            return;
        }
        let mut row = self.authority_row();
        row.servers_left = row.servers_left.saturating_add(servers as u64);
        self.keep_authority(row);
    }

    fn authority_row(&self) -> AuthorityRow {
        match self.rows.identity.get(&IdentityKey::Authority) {
            Some(IdentityRow::Authority(row)) => row.clone(),
            _ => AuthorityRow::default(),
        }
    }

    fn keep_authority(&mut self, row: AuthorityRow) {
        self.rows.identity.insert(IdentityKey::Authority, IdentityRow::Authority(row));
    }
}
