//! The table of endpoints, and the OpenAPI description made from it.

use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use crate::problem::{ErrorCode, Problem};
use crate::types::{
    BlobCreated, BlobQuery, BlobRequest, BlobsMissing, CancelResponse, ClusterStatus, ConstraintsRequest,
    ContentStatus, DeviceStatus, EventMessage, FileStatus, InputRequest, JobCounts, JobCreated, JobList,
    JobRequest, JobStatus, OutputsRequest, RetentionStatus, RetriesRequest, StreamEnd, StreamName,
    StreamedJob, TaskExplanation, TaskList, TaskRequest, TaskResult, TaskStatus, TimeoutChanged,
    TimeoutRequest, WorkerStatus,
};

/// One endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    /// `get` or `post`.
    pub method: &'static str,
    /// The path, parameters in braces.
    pub path: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// Parameters of the query with what they mean.
    pub query: &'static [(&'static str, &'static str)],
    /// Name of the request's schema.
    pub request: Option<&'static str>,
    /// Name of the response's schema, or its media type.
    pub response: &'static str,
}

const ATTEMPT: (&str, &str) = ("attempt", "which attempt; the latest when left out");
const WAIT: (&str, &str) =
    ("wait_ms", "answer when it has ended, or after so many milliseconds, at most 60000");

/// Every endpoint, in the order in which people meet them.
pub const ENDPOINTS: &[Endpoint] = &[
    endpoint(
        "post",
        "/v1/jobs",
        "Submit a job. Send an Idempotency-Key to be able to repeat it",
        &[],
        Some("JobRequest"),
        "JobCreated",
    ),
    endpoint(
        "post",
        "/v1/tasks",
        "Submit tasks as one job: an object, an array, or one object a line (application/x-ndjson)",
        &[("tenant", "whose tasks they are"), ("name", "the job's name")],
        Some("TaskRequest"),
        "JobCreated",
    ),
    endpoint(
        "post",
        "/v1/tasks/stream",
        "Submit any number of tasks, one object a line (application/x-ndjson). They become jobs of up to 10000 lines as they \
         come, each answered by a line (StreamedJob) once it is durable; the last line is a StreamEnd",
        &[("tenant", "whose tasks they are"), ("name", "the jobs' name")],
        Some("TaskRequest"),
        "application/x-ndjson",
    ),
    endpoint(
        "get",
        "/v1/jobs",
        "List jobs, newest first",
        &[
            ("before", "only jobs before this one"),
            ("limit", "at most so many, up to 1000"),
            ("tenant", "only this tenant's"),
        ],
        None,
        "JobList",
    ),
    endpoint("get", "/v1/jobs/{id}", "A job", &[WAIT], None, "JobStatus"),
    endpoint(
        "get",
        "/v1/jobs/{id}/tasks",
        "A job's tasks",
        &[
            ("from", "only tasks from this one on"),
            ("limit", "at most so many, up to 1000"),
            ("state", "only tasks in this state"),
        ],
        None,
        "TaskList",
    ),
    endpoint(
        "get",
        "/v1/jobs/{id}/events",
        "What happens to a job, until it ends",
        &[],
        None,
        "text/event-stream",
    ),
    endpoint(
        "post",
        "/v1/jobs/{id}/rerun",
        "Submit tasks of a job again, as a new job",
        &[
            ("which", "failed: those that failed or were cancelled, as when it is left out; or all"),
            ("tasks", "only these, which must have ended, such as t7,t9..t12"),
        ],
        None,
        "JobCreated",
    ),
    endpoint(
        "post",
        "/v1/jobs/{id}/cancel",
        "Cancel what has not ended of a job",
        &[],
        None,
        "CancelResponse",
    ),
    endpoint(
        "post",
        "/v1/jobs/{id}/timeout",
        "Give every task of a job that has not ended another time-out, also those that run",
        &[],
        Some("TimeoutRequest"),
        "TimeoutChanged",
    ),
    endpoint(
        "get",
        "/v1/tasks",
        "List the tasks of jobs that have not ended",
        &[
            ("from", "only tasks from this one on"),
            ("limit", "at most so many, up to 1000"),
            ("state", "only tasks in this state"),
        ],
        None,
        "TaskList",
    ),
    endpoint("get", "/v1/tasks/{id}", "A task", &[WAIT], None, "TaskStatus"),
    endpoint("get", "/v1/tasks/{id}/result", "What an attempt came to", &[ATTEMPT], None, "TaskResult"),
    endpoint(
        "get",
        "/v1/tasks/{id}/logs",
        "A stream of an attempt",
        &[
            ("stream", "stdout or stderr"),
            ("offset", "from this byte on"),
            (
                "follow",
                "true: wait for the attempt to begin and go on to its end; grey-attempt in the answer says which",
            ),
            (
                "after",
                "with follow: an attempt after this one; the answer is empty (204) when none will come",
            ),
            ATTEMPT,
        ],
        None,
        "application/octet-stream",
    ),
    endpoint(
        "get",
        "/v1/tasks/{id}/outputs/{number}",
        "An output file, by its number in the result",
        &[ATTEMPT],
        None,
        "application/octet-stream",
    ),
    endpoint(
        "get",
        "/v1/tasks/{id}/proof",
        "The proof of an attempt, to be checked with `grey verify`",
        &[ATTEMPT],
        None,
        "application/vnd.grey.proof.v1+json",
    ),
    endpoint(
        "get",
        "/v1/tasks/{id}/explain",
        "Why a task is where it is, how many are ahead of it, and how long that may take",
        &[],
        None,
        "TaskExplanation",
    ),
    endpoint("post", "/v1/tasks/{id}/cancel", "Cancel a task", &[], None, "CancelResponse"),
    endpoint(
        "post",
        "/v1/tasks/{id}/timeout",
        "Give a task another time-out, also while it runs",
        &[],
        Some("TimeoutRequest"),
        "TimeoutChanged",
    ),
    endpoint(
        "post",
        "/v1/blobs",
        "Send content that tasks name by its digest: the body as it is",
        &[],
        None,
        "BlobCreated",
    ),
    endpoint(
        "post",
        "/v1/blobs/missing",
        "Which content still has to be sent",
        &[],
        Some("BlobQuery"),
        "BlobsMissing",
    ),
    endpoint("get", "/v1/events", "What happens to every job", &[], None, "text/event-stream"),
    endpoint("get", "/v1/cluster", "The cluster as this node sees it", &[], None, "ClusterStatus"),
    endpoint("get", "/v1/cluster/root", "The root that a verifier keeps", &[], None, "application/json"),
    endpoint(
        "post",
        "/v1/cluster/shutdown",
        "End a local cluster's process; its data stays",
        &[],
        None,
        "application/json",
    ),
    endpoint("get", "/openapi.json", "This description", &[], None, "application/json"),
    endpoint("get", "/health/live", "Whether the process answers", &[], None, "text/plain"),
    endpoint("get", "/health/ready", "Whether the node takes requests", &[], None, "text/plain"),
];

const fn endpoint(
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    query: &'static [(&'static str, &'static str)],
    request: Option<&'static str>,
    response: &'static str,
) -> Endpoint {
    Endpoint { method, path, summary, query, request, response }
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
    WorkerStatus
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
    if let (Some(request), Some(operation)) = (endpoint.request, operation.as_object_mut()) {
        let body =
            json!({ "required": true, "content": { "application/json": { "schema": reference(request) } } });
        operation.insert("requestBody".to_owned(), body);
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
        }
        let text = document.to_string();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name} is not described");
        }
    }
}
