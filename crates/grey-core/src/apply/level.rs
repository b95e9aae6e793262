//! What servers run, and what the cluster has agreed to write.

use super::{Application, Stop};
use crate::effect::Answer;
use crate::identity::{IdentityKey, IdentityRow, NodeRole};
use crate::level::{RaiseFeatureLevel, SetNodeVersion};
use crate::limits;
use crate::rejection::Rejection;

impl Application<'_> {
    pub(super) fn set_node_version(&mut self, body: SetNodeVersion) -> Result<Answer, Stop> {
        let row = self.rows.base.node(&body.node).ok_or(Rejection::UnknownNode(body.node))?;
        if row.role != NodeRole::Server {
            return Err(
                Rejection::NotAdmitted("it is a worker, and understands no entries".to_owned()).into()
            );
        }
        if body.version.name.len() > limits::NAME_BYTES || body.version.name.chars().any(char::is_control) {
            return Err(Rejection::OutOfBounds {
                field: "version".to_owned(),
                problem: "is too long, or has control characters".to_owned(),
                limit: limits::NAME_BYTES as u64,
            }
            .into());
        }
        self.rows.identity.insert(IdentityKey::Version(body.node), IdentityRow::Version(body.version));
        Ok(Answer::Identity)
    }

    pub(super) fn raise_feature_level(&mut self, body: &RaiseFeatureLevel) -> Result<Answer, Stop> {
        self.rows.base.may_raise_to(body.level)?;
        self.rows.meta.feature_level = body.level;
        Ok(Answer::Identity)
    }
}
