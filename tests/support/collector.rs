//! A collector of OpenTelemetry: takes spans by OTLP over gRPC, as any other does.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;

/// A span, and who told it.
#[derive(Debug, Clone)]
pub struct Told {
    pub resource: Vec<KeyValue>,
    pub span: Span,
}

fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value?;
    Some(match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        other => panic!("{key} is {other:?}"),
    })
}

impl Told {
    pub fn has(&self, key: &str, value: &str) -> bool {
        attribute(&self.span.attributes, key).as_deref() == Some(value)
    }

    pub fn teller(&self, key: &str) -> Option<String> {
        attribute(&self.resource, key)
    }

    pub fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    pub fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    pub fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Clone, Default)]
struct Taking(Arc<Mutex<Vec<Told>>>);

#[tonic::async_trait]
impl TraceService for Taking {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let mut told = self.0.lock().unwrap();
        for of_resource in request.into_inner().resource_spans {
            let resource = of_resource.resource.unwrap_or_default().attributes;
            for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                told.push(Told { resource: resource.clone(), span });
            }
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

/// It ends when it is dropped.
pub struct Collector {
    address: SocketAddr,
    told: Taking,
    _runtime: tokio::runtime::Runtime,
}

impl Collector {
    pub fn new() -> Collector {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let told = Taking::default();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let routes = tonic::service::Routes::new(TraceServiceServer::new(told.clone())).into_axum_router();
        runtime.spawn(async move { axum::serve(listener, routes).await });
        Collector { address, told, _runtime: runtime }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Spans so far.
    pub fn told(&self) -> Vec<Told> {
        self.told.0.lock().unwrap().clone()
    }

    /// The spans of a name so far.
    pub fn named(&self, name: &str) -> Vec<Told> {
        self.told().into_iter().filter(|told| told.span.name == name).collect()
    }
}
