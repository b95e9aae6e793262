//! What both failure detectors share: an observer that knows when it was late itself.

/// What a heartbeat meant to a detector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The peer is not registered; the heartbeat changed nothing.
    Unknown,
    /// The peer was not suspect.
    Trusted,
    /// The peer was suspect and is not any more.
    Recovered,
}

/// Whether the observer itself was awake. One that slept has not listened, so silence says nothing about its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observer {
    longest_gap_ms: u64,
    last_tick_ms: u64,
}

impl Observer {
    pub(crate) fn new(longest_gap_ms: u64, now_ms: u64) -> Observer {
        Observer { longest_gap_ms, last_tick_ms: now_ms }
    }

    /// Whether a tick at this time would come too late.
    pub(crate) fn is_late(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.last_tick_ms) > self.longest_gap_ms
    }

    /// Takes note of a tick, and says whether it came too late.
    pub(crate) fn tick(&mut self, now_ms: u64) -> bool {
        let late = self.is_late(now_ms);
        self.last_tick_ms = self.last_tick_ms.max(now_ms);
        late
    }
}
