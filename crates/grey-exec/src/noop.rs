//! The executor that runs nothing: it measures the control plane.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use grey_agent::{
    Capabilities, Captured, EventSink, Executed, Execution, Executor, ExecutorEvent, OutputStream,
    StopReason, Tail,
};
use grey_core::{AttemptId, Outcome, Resources, SandboxLevel, Usage, UsageSource};

/// Ends every attempt at once with status 0, on the caller's thread and before `start` returns.
pub struct NoopExecutor {
    resources: Resources,
    sink: EventSink,
}

impl NoopExecutor {
    /// An executor that claims to have `resources` and tells `sink` of every end.
    pub fn new(resources: Resources, sink: EventSink) -> NoopExecutor {
        NoopExecutor { resources, sink }
    }
}

/// Milliseconds since 1970 by the wall clock; zero before that.
pub(crate) fn wall_clock_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

impl Executor for NoopExecutor {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            sandbox: SandboxLevel::None,
            resources: self.resources,
            notes: vec!["The noop executor runs nothing, so it enforces nothing.".to_owned()],
        }
    }

    fn start(&self, execution: Execution) {
        (self.sink)(ExecutorEvent::Finished(Box::new(Executed {
            attempt: execution.attempt,
            outcome: Outcome::Exited(0),
            sandbox: SandboxLevel::None,
            usage_source: UsageSource::None,
            usage: Usage { started_at_ms: wall_clock_ms(), ..Usage::default() },
            stdout: Captured::Inline(Vec::new()),
            stderr: Captured::Inline(Vec::new()),
            files: Vec::new(),
            message: String::new(),
        })));
    }

    /// Nothing of it outlives anybody.
    fn adopt(&self, execution: Execution) {
        self.start(execution);
    }

    fn hold_until(&self, _lease_end_ns: u64) {}

    fn stop(&self, _attempt: AttemptId, _reason: StopReason) {}

    fn change_timeout(&self, _attempt: AttemptId, _timeout_ms: u64) {}

    fn tail(&self, _attempt: AttemptId, _stream: OutputStream) -> Option<Arc<dyn Tail>> {
        None
    }

    fn release(&self, _attempt: AttemptId) {}
}
