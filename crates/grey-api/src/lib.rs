//! The client API of Grey: its types, its OpenAPI description, and a client. The command line reaches a cluster through
//! nothing else.

mod address;
mod client;
mod connect;
mod delay;
mod endpoints;
mod near;
mod problem;
mod retry;
mod rights;
mod task_stream;
mod trust;
mod types;
mod types_access;
mod types_authority;

pub use address::{Address, AddressError, DEFAULT_PORT, addresses};
pub use client::{Body, Client, ClientError};
pub use connect::{Wire, connect};
pub use delay::{Delay, Observer};
pub use endpoints::{ENDPOINTS, Endpoint, Subject, openapi};
pub use near::nearest;
pub use problem::{ErrorCode, Problem};
pub use retry::RetryOptions;
pub use rights::{Right, Role, UnknownRole};
pub use task_stream::{TaskStream, TaskStreamError};
pub use trust::{LARGEST_TRUST_BYTES, Trust, TrustError};
pub use types::{
    BlobCreated, BlobQuery, BlobRequest, BlobsMissing, CancelResponse, ClusterStatus, ConstraintsRequest,
    ContentStatus, DeviceStatus, EventMessage, FileStatus, InputRequest, JobCounts, JobCreated, JobList,
    JobRequest, JobStatus, OutputsRequest, RetentionStatus, RetriesRequest, StreamEnd, StreamName,
    StreamedJob, TaskExplanation, TaskList, TaskRequest, TaskResult, TaskStatus, TimeoutChanged,
    TimeoutRequest, WorkerStatus,
};
pub use types_access::{
    FeatureLevelRaised, JoinTokenCreated, JoinTokenRequest, LeadershipTransferred, NodeList, NodeStatus,
    QuotaRequest, SubmissionRate, TenantDefaults, TenantList, TenantQuota, TenantRequest, TenantStatus,
    TokenCreated, TokenList, TokenRequest, TokenStatus, TransferRequest,
};
pub use types_authority::{IssuingKeyAsked, IssuingKeyCertified, IssuingKeyStatus};
