//! Refusals as they travel: problem details (RFC 9457) with a stable code.

use core::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal, $title:literal;)*) => {
        /// Stable codes of refusals. Each has a page in `docs/errors`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        pub enum ErrorCode {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &[ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The code as it is written.
            pub fn name(self) -> &'static str {
                match self { $(ErrorCode::$name => $text,)* }
            }

            /// The HTTP status that goes with it.
            pub fn status(self) -> u16 {
                match self { $(ErrorCode::$name => $status,)* }
            }

            /// What it means, in a few words.
            pub fn title(self) -> &'static str {
                match self { $(ErrorCode::$name => $title,)* }
            }
        }
    };
}

codes! {
    /// The request is not what the endpoint takes.
    InvalidRequest = "invalid_request", 400, "The request cannot be read";
    /// A field lies outside its bounds.
    OutOfBounds = "out_of_bounds", 422, "A value lies outside its bounds";
    /// No token, or one that is not known.
    Unauthorized = "unauthorized", 401, "A valid token is needed";
    /// The token's role does not allow it.
    Forbidden = "forbidden", 403, "The role does not allow it";
    /// The tenant may submit nothing.
    TenantSuspended = "tenant_suspended", 403, "The tenant is suspended";
    /// The request came from a web page of another origin.
    ForbiddenOrigin = "forbidden_origin", 403, "Requests from this host or origin are not taken";
    /// No such tenant.
    UnknownTenant = "unknown_tenant", 404, "The tenant is unknown";
    /// No such job, task, attempt, output or endpoint.
    NotFound = "not_found", 404, "There is no such thing";
    /// It was there and is no longer kept.
    NotRetained = "not_retained", 410, "It is no longer kept";
    /// The endpoint exists and does not take this method.
    MethodNotAllowed = "method_not_allowed", 405, "The method is not taken here";
    /// What is asked for exists only once the task has ended.
    NotEnded = "not_ended", 409, "The task has not ended";
    /// What is asked for makes sense only before the end.
    HasEnded = "has_ended", 409, "It has ended";
    /// The idempotency key was used for another body.
    IdempotencyConflict = "idempotency_conflict", 409, "The idempotency key was used for another submission";
    /// What is asked for contradicts what the cluster is.
    Conflict = "conflict", 409, "The cluster is not such that this can be done";
    /// The request paused for longer than one may.
    RequestTimeout = "request_timeout", 408, "The request came too slowly";
    /// The request is larger than any may be.
    TooLarge = "too_large", 413, "The request is too large";
    /// The tenant has as many tasks or keys as it may.
    QueueFull = "queue_full", 429, "A bound of the tenant is reached";
    /// The tenant submits more tasks a second than it may.
    RateExceeded = "rate_exceeded", 429, "The tenant submits too fast";
    /// The submission has more tasks than the tenant may submit at once: it never fits.
    BurstExceeded = "burst_exceeded", 422, "The submission is larger than the tenant may send at once";
    /// More is under way than the node takes.
    Overloaded = "overloaded", 503, "Too much is under way";
    /// The request was accepted for replication and its fate is not known to this node.
    OutcomeUnknown = "outcome_unknown", 500, "Whether it happened is not known";
    /// A defect of Grey or damaged data.
    Internal = "internal", 500, "Something is wrong inside Grey";
    /// The node is starting, stopping, or not the leader.
    Unavailable = "unavailable", 503, "The node cannot answer now";
    /// The disk is nearly full, so no new work is taken.
    DiskFull = "disk_full", 507, "The disk is nearly full";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// What was wrong, where, the limit, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// `urn:grey:error:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code's meaning.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The code.
    pub code: ErrorCode,
    /// What exactly was wrong.
    pub detail: String,
    /// Which field, where one is at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The bound that was broken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// What is used of the limit without the request, in the same unit, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<u64>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// When trying again makes sense, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl Problem {
    /// A refusal of a code with its particulars.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Problem {
        Problem {
            kind: format!("urn:grey:error:{code}"),
            title: code.title().to_owned(),
            status: code.status(),
            code,
            detail: detail.into(),
            field: None,
            limit: None,
            usage: None,
            hint: None,
            retry_after_ms: None,
        }
    }

    /// With the field at fault.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Problem {
        self.field = Some(field.into());
        self
    }

    /// With the bound that was broken.
    #[must_use]
    pub fn limit(mut self, limit: u64) -> Problem {
        self.limit = Some(limit);
        self
    }

    /// With what is used of the limit.
    #[must_use]
    pub fn usage(mut self, usage: u64) -> Problem {
        self.usage = Some(usage);
        self
    }

    /// With what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into());
        self
    }

    /// With when to try again, in milliseconds.
    #[must_use]
    pub fn retry_after_ms(mut self, retry_after_ms: u64) -> Problem {
        self.retry_after_ms = Some(retry_after_ms);
        self
    }
}
