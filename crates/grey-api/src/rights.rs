//! What a request may do, and which role may do what. A role has the rights that stand here and no others.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What an endpoint takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Nothing: whoever reaches the node may ask.
    None,
    /// Being known, whoever it is.
    BeKnown,
    /// Seeing jobs, tasks, what they left, and what happens to them.
    ReadWork,
    /// Submitting, cancelling and changing jobs and tasks, and sending content for them.
    ChangeWork,
    /// Seeing tenants.
    ReadTenants,
    /// Making, suspending and resuming tenants.
    ChangeTenants,
    /// Making, seeing and revoking tokens.
    ChangeTokens,
    /// Seeing the cluster and its nodes.
    ReadCluster,
    /// Letting nodes in, and keeping them out.
    ChangeNodes,
    /// Ending the process that answers.
    EndProcess,
}

impl Right {
    /// Every right.
    pub const ALL: [Right; 10] = [
        Right::None,
        Right::BeKnown,
        Right::ReadWork,
        Right::ChangeWork,
        Right::ReadTenants,
        Right::ChangeTenants,
        Right::ChangeTokens,
        Right::ReadCluster,
        Right::ChangeNodes,
        Right::EndProcess,
    ];
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Sees what a tenant's jobs do.
    Viewer,
    /// Submits and changes a tenant's jobs.
    Submitter,
    /// Gives out a tenant's tokens, too.
    TenantAdmin,
    /// Runs the cluster, for every tenant.
    Operator,
    /// Sees everything, changes nothing.
    Auditor,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 5] =
        [Role::Viewer, Role::Submitter, Role::TenantAdmin, Role::Operator, Role::Auditor];

    /// The role as it is written.
    pub fn name(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Submitter => "submitter",
            Role::TenantAdmin => "tenant-admin",
            Role::Operator => "operator",
            Role::Auditor => "auditor",
        }
    }

    /// Whether a token of this role is of one tenant; the others are of the whole cluster.
    pub fn is_of_a_tenant(self) -> bool {
        matches!(self, Role::Viewer | Role::Submitter | Role::TenantAdmin)
    }

    /// Whether the role has a right.
    pub fn may(self, right: Right) -> bool {
        match right {
            Right::None | Right::BeKnown | Right::ReadWork | Right::ReadTenants => true,
            Right::ChangeWork => matches!(self, Role::Submitter | Role::TenantAdmin | Role::Operator),
            Right::ChangeTokens => matches!(self, Role::TenantAdmin | Role::Operator),
            Right::ReadCluster => matches!(self, Role::Operator | Role::Auditor),
            Right::ChangeTenants | Right::ChangeNodes => self == Role::Operator,
            // Whoever may open the socket of a local cluster, and no token.
            Right::EndProcess => false,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A text that is no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no role; the roles are viewer, submitter, tenant-admin, operator and auditor")]
pub struct UnknownRole(String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Role, UnknownRole> {
        let found = Role::ALL.into_iter().find(|role| role.name() == text);
        found.ok_or_else(|| UnknownRole(text.chars().take(64).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_has_the_rights_of_this_table_and_no_others() {
        // viewer, submitter, tenant-admin, operator, auditor
        for (right, may) in [
            (Right::None, "yyyyy"),
            (Right::BeKnown, "yyyyy"),
            (Right::ReadWork, "yyyyy"),
            (Right::ChangeWork, ".yyy."),
            (Right::ReadTenants, "yyyyy"),
            (Right::ChangeTenants, "...y."),
            (Right::ChangeTokens, "..yy."),
            (Right::ReadCluster, "...yy"),
            (Right::ChangeNodes, "...y."),
            (Right::EndProcess, "....."),
        ] {
            let found: String =
                Role::ALL.into_iter().map(|role| if role.may(right) { 'y' } else { '.' }).collect();
            assert_eq!(found, may, "{right:?}");
        }
    }

    #[test]
    fn a_role_reads_as_it_is_written() {
        for role in Role::ALL {
            assert_eq!(role.name().parse(), Ok(role));
            assert_eq!(serde_json::to_string(&role).unwrap(), format!("\"{role}\""));
        }
        assert!("root".parse::<Role>().is_err());
    }
}
