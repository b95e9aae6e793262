//! The table of endpoints, and the OpenAPI description made from it.

use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use crate::problem::{ErrorCode, Problem};
use crate::rights::{Right, Role};
use crate::types::{
    BlobCreated, BlobQuery, BlobRequest, BlobsMissing, CancelResponse, ClusterStatus, ConstraintsRequest,
    ContentStatus, DeviceStatus, EventMessage, FileStatus, InputRequest, JobCounts, JobCreated, JobList,
    JobRequest, JobStatus, OutputsRequest, RetentionStatus, RetriesRequest, StreamEnd, StreamName,
    StreamedJob, TaskExplanation, TaskList, TaskRequest, TaskResult, TaskStatus, TimeoutChanged,
    TimeoutRequest, WorkerStatus,
};
use crate::types_access::{
    FeatureLevelRaised, JoinTokenCreated, JoinTokenRequest, LeadershipTransferred, NodeList, NodeStatus,
    QuotaRequest, SubmissionRate, TenantDefaults, TenantList, TenantQuota, TenantRequest, TenantStatus,
    TokenCreated, TokenList, TokenRequest, TokenStatus, TransferRequest,
};
use crate::types_authority::{IssuingKeyAsked, IssuingKeyCertified, IssuingKeyStatus};

/// One endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    /// `get`, `post` or `delete`.
    pub method: &'static str,
    /// The path, parameters in braces.
    pub path: &'static str,
    /// What whoever asks must be allowed to do.
    pub needs: Right,
    /// What it does.
    pub summary: &'static str,
    /// Parameters of the query with what they mean.
    pub query: &'static [(&'static str, &'static str)],
    /// Name of the request's schema.
    pub request: Option<&'static str>,
    /// Name of the response's schema, or its media type.
    pub response: &'static str,
}

/// What an endpoint is about, where its path names something that belongs to a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// Nothing of a tenant's.
    Nothing,
    /// A job.
    Job,
    /// A task.
    Task,
}

const ATTEMPT: (&str, &str) = ("attempt", "which attempt; the latest when left out");
const WAIT: (&str, &str) =
    ("wait_ms", "answer when it has ended, or after so many milliseconds, at most 60000");

const STREAM: &str = "Submit any number of tasks, one object a line (application/x-ndjson). They become jobs of up \
                      to 10000 lines as they come, each answered by a line (StreamedJob) once it is durable; \
                      the last line is a StreamEnd";

const LOGS: &[(&str, &str)] = &[
    ("stream", "stdout or stderr"),
    ("offset", "from this byte on"),
    (
        "follow",
        "true: wait for the attempt to begin and go on to its end; grey-attempt in the answer says which",
    ),
    ("after", "with follow: an attempt after this one; the answer is empty (204) when none will come"),
    ATTEMPT,
];

/// Every endpoint, in the order in which people meet them. What does not stand here is refused.
pub const ENDPOINTS: &[Endpoint] = &[
    post("/v1/jobs", Right::ChangeWork, "Submit a job. Send an Idempotency-Key to be able to repeat it")
        .takes("JobRequest")
        .gives("JobCreated"),
    post(
        "/v1/tasks",
        Right::ChangeWork,
        "Submit tasks as one job: an object, an array, or one object a line (application/x-ndjson)",
    )
    .query(&[("tenant", "whose tasks they are"), ("name", "the job's name")])
    .takes("TaskRequest")
    .gives("JobCreated"),
    post("/v1/tasks/stream", Right::ChangeWork, STREAM)
        .query(&[
            ("tenant", "whose tasks they are"),
            ("name", "the jobs' name"),
            ("lines_before", "to go on with a stream that broke, under its key: the lines that were answered for"),
            ("jobs_before", "with lines_before: how many jobs these had become"),
        ])
        .takes("TaskRequest")
        .gives("application/x-ndjson"),
    get("/v1/jobs", Right::ReadWork, "List jobs, newest first")
        .query(&[
            ("before", "only jobs before this one"),
            ("limit", "at most so many, up to 1000"),
            ("tenant", "only this tenant's"),
        ])
        .gives("JobList"),
    get("/v1/jobs/{id}", Right::ReadWork, "A job").query(&[WAIT]).gives("JobStatus"),
    get("/v1/jobs/{id}/tasks", Right::ReadWork, "A job's tasks")
        .query(&[
            ("from", "only tasks from this one on"),
            ("limit", "at most so many, up to 1000"),
            ("state", "only tasks in this state"),
        ])
        .gives("TaskList"),
    get("/v1/jobs/{id}/events", Right::ReadWork, "What happens to a job, until it ends")
        .gives("text/event-stream"),
    post("/v1/jobs/{id}/rerun", Right::ChangeWork, "Submit tasks of a job again, as a new job")
        .query(&[
            ("which", "failed: those that failed or were cancelled, as when it is left out; or all"),
            ("tasks", "only these, which must have ended, such as t7,t9..t12"),
        ])
        .gives("JobCreated"),
    post("/v1/jobs/{id}/cancel", Right::ChangeWork, "Cancel what has not ended of a job")
        .gives("CancelResponse"),
    post(
        "/v1/jobs/{id}/timeout",
        Right::ChangeWork,
        "Give every task of a job that has not ended another time-out, also those that run",
    )
    .takes("TimeoutRequest")
    .gives("TimeoutChanged"),
    get("/v1/tasks", Right::ReadWork, "List the tasks of jobs that have not ended")
        .query(&[
            ("from", "only tasks from this one on"),
            ("limit", "at most so many, up to 1000"),
            ("state", "only tasks in this state"),
        ])
        .gives("TaskList"),
    get("/v1/tasks/{id}", Right::ReadWork, "A task").query(&[WAIT]).gives("TaskStatus"),
    get("/v1/tasks/{id}/result", Right::ReadWork, "What an attempt came to")
        .query(&[ATTEMPT])
        .gives("TaskResult"),
    get("/v1/tasks/{id}/logs", Right::ReadWork, "A stream of an attempt")
        .query(LOGS)
        .gives("application/octet-stream"),
    get("/v1/tasks/{id}/outputs/{number}", Right::ReadWork, "An output file, by its number in the result")
        .query(&[ATTEMPT])
        .gives("application/octet-stream"),
    get("/v1/tasks/{id}/proof", Right::ReadWork, "The proof of an attempt, to be checked with `grey verify`")
        .query(&[ATTEMPT])
        .gives("application/vnd.grey.proof.v1+json"),
    get(
        "/v1/tasks/{id}/explain",
        Right::ReadWork,
        "Why a task is where it is, how many are ahead of it, and how long that may take",
    )
    .gives("TaskExplanation"),
    post("/v1/tasks/{id}/cancel", Right::ChangeWork, "Cancel a task").gives("CancelResponse"),
    post("/v1/tasks/{id}/timeout", Right::ChangeWork, "Give a task another time-out, also while it runs")
        .takes("TimeoutRequest")
        .gives("TimeoutChanged"),
    post("/v1/blobs", Right::ChangeWork, "Send content that tasks name by its digest: the body as it is")
        .gives("BlobCreated"),
    post("/v1/blobs/missing", Right::ChangeWork, "Which content still has to be sent")
        .takes("BlobQuery")
        .gives("BlobsMissing"),
    get("/v1/events", Right::ReadWork, "What happens to every job").gives("text/event-stream"),
    get("/v1/tenants", Right::ReadTenants, "List tenants: those that the token may see").gives("TenantList"),
    get("/v1/tenants/{name}", Right::ReadTenants, "A tenant").gives("TenantStatus"),
    post("/v1/tenants", Right::ChangeTenants, "Make a tenant").takes("TenantRequest").gives("TenantStatus"),
    post("/v1/tenants/{name}/quota", Right::ChangeTenants, "Change what a tenant may have")
        .takes("QuotaRequest")
        .gives("TenantStatus"),
    post(
        "/v1/tenants/{name}/suspend",
        Right::ChangeTenants,
        "Take no more work of a tenant; what it has goes on",
    )
    .gives("TenantStatus"),
    post("/v1/tenants/{name}/resume", Right::ChangeTenants, "Take work of a tenant again")
        .gives("TenantStatus"),
    get("/v1/tokens", Right::ChangeTokens, "List tokens: those that the token may revoke").gives("TokenList"),
    post("/v1/tokens", Right::ChangeTokens, "Make a token. Its secret is in this answer and nowhere else")
        .takes("TokenRequest")
        .gives("TokenCreated"),
    delete("/v1/tokens/{id}", Right::ChangeTokens, "Revoke a token").gives("TokenStatus"),
    post(
        "/v1/join-tokens",
        Right::ChangeNodes,
        "Make a token that lets one node in, once. Its secret is in this answer and nowhere else",
    )
    .takes("JoinTokenRequest")
    .gives("JoinTokenCreated"),
    get("/v1/nodes", Right::ReadCluster, "List the nodes of the cluster").gives("NodeList"),
    get("/v1/nodes/{id}", Right::ReadCluster, "A node, by its identity or its name").gives("NodeStatus"),
    post("/v1/nodes/{id}/block", Right::ChangeNodes, "Keep a node out").gives("NodeStatus"),
    post("/v1/nodes/{id}/unblock", Right::ChangeNodes, "Let a node speak again").gives("NodeStatus"),
    post(
        "/v1/nodes/{id}/cordon",
        Right::ChangeNodes,
        "Give a worker no new work. What runs there goes on; what it has not started goes back",
    )
    .gives("NodeStatus"),
    post("/v1/nodes/{id}/uncordon", Right::ChangeNodes, "Give a worker work again").gives("NodeStatus"),
    post(
        "/v1/nodes/{id}/quarantine",
        Right::ChangeNodes,
        "Give a worker no work for a while, and then a little at first",
    )
    .gives("NodeStatus"),
    post(
        "/v1/nodes/{id}/release",
        Right::ChangeNodes,
        "End a worker's quarantine or probation, and forget the earlier ones",
    )
    .gives("NodeStatus"),
    post("/v1/nodes/{id}/remove", Right::ChangeNodes, "Take a node out of the cluster").gives("NodeStatus"),
    get("/v1/cluster", Right::ReadCluster, "The cluster as its leader sees it")
        .query(&[("stale", "true: as the server sees it that is asked, which may lag behind")])
        .gives("ClusterStatus"),
    get("/v1/cluster/root", Right::BeKnown, "The root that a verifier keeps").gives("application/json"),
    get(
        "/v1/cluster/snapshot",
        Right::ChangeNodes,
        "Everything that the cluster has, from which it can be restored",
    )
    .gives("application/octet-stream"),
    post(
        "/v1/cluster/transfer",
        Right::ChangeNodes,
        "Have another server lead. Answers once one does, within 10 s",
    )
    .takes("TransferRequest")
    .gives("LeadershipTransferred"),
    post(
        "/v1/cluster/upgrade",
        Right::ChangeNodes,
        "Put in force, for good, the newest feature level that every server understands",
    )
    .gives("FeatureLevelRaised"),
    post(
        "/v1/cluster/authority/request",
        Right::ChangeNodes,
        "Make the next issuing key, for the root key to certify. It stays the same until that has certified it",
    )
    .gives("IssuingKeyAsked"),
    post(
        "/v1/cluster/authority",
        Right::ChangeNodes,
        "Put the next issuing key in the place of the current one, as the root key has certified it",
    )
    .takes("IssuingKeyCertified")
    .gives("IssuingKeyStatus"),
    post("/v1/cluster/shutdown", Right::EndProcess, "End a local cluster's process; its data stays")
        .gives("application/json"),
    get("/openapi.json", Right::BeKnown, "This description").gives("application/json"),
    get("/health/live", Right::None, "Whether the process answers").gives("text/plain"),
    get("/health/ready", Right::None, "Whether the node takes requests").gives("text/plain"),
];

const fn endpoint(method: &'static str, path: &'static str, needs: Right, summary: &'static str) -> Endpoint {
    Endpoint { method, path, needs, summary, query: &[], request: None, response: "application/json" }
}

const fn get(path: &'static str, needs: Right, summary: &'static str) -> Endpoint {
    endpoint("get", path, needs, summary)
}

const fn post(path: &'static str, needs: Right, summary: &'static str) -> Endpoint {
    endpoint("post", path, needs, summary)
}

const fn delete(path: &'static str, needs: Right, summary: &'static str) -> Endpoint {
    endpoint("delete", path, needs, summary)
}

impl Endpoint {
    const fn query(self, query: &'static [(&'static str, &'static str)]) -> Endpoint {
        Endpoint { query, ..self }
    }

    const fn takes(self, schema: &'static str) -> Endpoint {
        Endpoint { request: Some(schema), ..self }
    }

    const fn gives(self, response: &'static str) -> Endpoint {
        Endpoint { response, ..self }
    }

    /// What `{id}` in the path names.
    pub fn subject(&self) -> Subject {
        match self.path {
            path if path.starts_with("/v1/jobs/{id}") => Subject::Job,
            path if path.starts_with("/v1/tasks/{id}") => Subject::Task,
            _ => Subject::Nothing,
        }
    }
}

#[derive(OpenApi)]
#[openapi(components(schemas(
    BlobCreated,
    BlobQuery,
    BlobRequest,
    BlobsMissing,
    InputRequest,
    CancelResponse,
    ClusterStatus,
    ConstraintsRequest,
    ContentStatus,
    DeviceStatus,
    ErrorCode,
    EventMessage,
    FileStatus,
    JobCounts,
    JobCreated,
    JobList,
    JobRequest,
    JobStatus,
    OutputsRequest,
    Problem,
    RetentionStatus,
    RetriesRequest,
    StreamEnd,
    StreamName,
    StreamedJob,
    TaskExplanation,
    TaskList,
    TaskRequest,
    TaskResult,
    TaskStatus,
    TimeoutChanged,
    TimeoutRequest,
    WorkerStatus,
    Role,
    TenantDefaults,
    JoinTokenCreated,
    JoinTokenRequest,
    FeatureLevelRaised,
    LeadershipTransferred,
    NodeList,
    NodeStatus,
    TenantList,
    QuotaRequest,
    SubmissionRate,
    TenantQuota,
    TenantRequest,
    TenantStatus,
    TokenCreated,
    TokenList,
    TokenRequest,
    TokenStatus,
    TransferRequest,
    IssuingKeyAsked,
    IssuingKeyCertified,
    IssuingKeyStatus
)))]
struct Schemas;

/// The OpenAPI description, version 3.1.
pub fn openapi() -> Value {
    let mut document = serde_json::to_value(Schemas::openapi()).unwrap_or_default();
    let mut paths: Map<String, Value> = Map::new();
    for endpoint in ENDPOINTS {
        let path = paths.entry(endpoint.path.to_owned()).or_insert_with(|| json!({}));
        if let Some(path) = path.as_object_mut() {
            path.insert(endpoint.method.to_owned(), operation(endpoint));
        }
    }
    if let Some(document) = document.as_object_mut() {
        document.insert("paths".to_owned(), Value::Object(paths));
        let info = json!({
            "title": "Grey",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Submit tasks, follow them, fetch their results and their proofs.",
            "license": { "name": "Apache-2.0" },
        });
        document.insert("info".to_owned(), info);
        if let Some(components) = document.get_mut("components").and_then(Value::as_object_mut) {
            let token = json!({ "type": "http", "scheme": "bearer" });
            components.insert("securitySchemes".to_owned(), json!({ "token": token }));
        }
    }
    document
}

fn operation(endpoint: &Endpoint) -> Value {
    let reference = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    let in_path =
        endpoint.path.split('{').skip(1).filter_map(|part| part.split('}').next()).map(
            |name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }),
        );
    let in_query = endpoint.query.iter().map(|(name, description)| {
        json!({ "name": name, "in": "query", "description": description, "schema": { "type": "string" } })
    });
    let mut parameters: Vec<Value> = in_path.chain(in_query).collect();
    if endpoint.request.is_some() {
        parameters.push(json!({
            "name": "Idempotency-Key", "in": "header",
            "description": "1 to 128 bytes; the same key and body give the same job",
            "schema": { "type": "string" },
        }));
    }
    let content = if endpoint.response.contains('/') {
        json!({ endpoint.response: {} })
    } else {
        json!({ "application/json": { "schema": reference(endpoint.response) } })
    };
    let mut operation = json!({
        "summary": endpoint.summary,
        "parameters": parameters,
        "responses": {
            "200": { "description": "Done", "content": content },
            "default": {
                "description": "Refused",
                "content": { "application/problem+json": { "schema": reference("Problem") } },
            },
        },
    });
    let Some(members) = operation.as_object_mut() else { return operation };
    if let Some(request) = endpoint.request {
        let body =
            json!({ "required": true, "content": { "application/json": { "schema": reference(request) } } });
        members.insert("requestBody".to_owned(), body);
    }
    // A unix socket asks for nothing; over HTTPS and the loopback interface, a token of one of these roles.
    if endpoint.needs != Right::None {
        let roles: Vec<&str> =
            Role::ALL.into_iter().filter(|role| role.may(endpoint.needs)).map(Role::name).collect();
        members.insert("security".to_owned(), json!([{ "token": roles }]));
    }
    operation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_names_every_endpoint_and_every_reference_leads_somewhere() {
        let document = openapi();
        assert_eq!(document["openapi"].as_str().unwrap().split('.').next(), Some("3"));
        for endpoint in ENDPOINTS {
            let operation = &document["paths"][endpoint.path][endpoint.method];
            assert_eq!(operation["summary"].as_str(), Some(endpoint.summary));
            assert_eq!(operation["security"].is_null(), endpoint.needs == Right::None);
        }
        assert!(document["components"]["securitySchemes"]["token"].is_object());
        let text = document.to_string();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name} is not described");
        }
    }
}
