//! The plain failure detector: silence for longer than a time-out makes a peer suspect.

use std::collections::BTreeMap;

use crate::detector::{Heard, Observer};
use crate::error::HealthError;
use crate::limits;
use crate::options::Checks;

/// What a [`HeartbeatDetector`] goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatOptions {
    /// A peer is suspect when nothing was heard from it for longer than this, in milliseconds; 1 to a day.
    pub timeout_ms: u64,
    /// An observer whose ticks lie further apart than this was late, in milliseconds; 1 to `timeout_ms`.
    pub longest_tick_gap_ms: u64,
    /// The most peers; 1 to [`limits::PEERS`].
    pub peers: usize,
}

impl Default for HeartbeatOptions {
    fn default() -> HeartbeatOptions {
        HeartbeatOptions { timeout_ms: 3_000, longest_tick_gap_ms: 1_000, peers: 10_000 }
    }
}

impl HeartbeatOptions {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`HealthError::Options`] with the whole list of what is wrong.
    pub fn validate(&self) -> Result<(), HealthError> {
        let mut checks = Checks::default();
        checks.within("timeout_ms", self.timeout_ms, 1..=limits::OPTION_MS);
        checks.within("longest_tick_gap_ms", self.longest_tick_gap_ms, 1..=self.timeout_ms);
        checks.within("peers", self.peers as u64, 1..=limits::PEERS as u64);
        checks.finish("heartbeat detector")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Peer {
    /// Since when its silence counts.
    armed_ms: u64,
    suspect: bool,
}

/// Suspects peers that were silent for too long.
///
/// Suspicion arises in [`tick`](HeartbeatDetector::tick) and ends with the next heartbeat. A tick that comes later than
/// `longest_tick_gap_ms` after the one before suspects nobody, and every peer's silence counts from that tick: an observer
/// that slept has not listened. Who was suspect before stays so until it is heard.
///
/// ```
/// use grey_health::{Heard, HeartbeatDetector, HeartbeatOptions};
///
/// let options = HeartbeatOptions { timeout_ms: 300, longest_tick_gap_ms: 200, peers: 5 };
/// let mut detector = HeartbeatDetector::new(options, 0)?;
/// detector.register("a", 0)?;
/// assert!(detector.tick(150).is_empty());
/// assert!(detector.tick(300).is_empty());
/// assert_eq!(detector.tick(301), ["a"]);
/// assert_eq!(detector.heartbeat(&"a", 320), Heard::Recovered);
/// # Ok::<(), grey_health::HealthError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatDetector<K> {
    options: HeartbeatOptions,
    observer: Observer,
    peers: BTreeMap<K, Peer>,
}

impl<K: Ord + Clone> HeartbeatDetector<K> {
    /// A detector without peers, whose observer is awake now.
    ///
    /// # Errors
    /// [`HealthError::Options`].
    pub fn new(options: HeartbeatOptions, now_ms: u64) -> Result<HeartbeatDetector<K>, HealthError> {
        options.validate()?;
        let observer = Observer::new(options.longest_tick_gap_ms, now_ms);
        Ok(HeartbeatDetector { options, observer, peers: BTreeMap::new() })
    }

    /// Takes in a peer as if it were heard now. One that is registered already starts anew.
    ///
    /// # Errors
    /// [`HealthError::Full`] at the bound of peers.
    pub fn register(&mut self, peer: K, now_ms: u64) -> Result<(), HealthError> {
        if !self.peers.contains_key(&peer) && self.peers.len() >= self.options.peers {
            return Err(HealthError::Full { part: "heartbeat detector", limit: self.options.peers });
        }
        self.peers.insert(peer, Peer { armed_ms: now_ms, suspect: false });
        Ok(())
    }

    /// Forgets a peer, and says whether it was known.
    pub fn remove(&mut self, peer: &K) -> bool {
        self.peers.remove(peer).is_some()
    }

    /// A sign of life.
    pub fn heartbeat(&mut self, peer: &K, now_ms: u64) -> Heard {
        let Some(peer) = self.peers.get_mut(peer) else { return Heard::Unknown };
        peer.armed_ms = peer.armed_ms.max(now_ms);
        if core::mem::take(&mut peer.suspect) { Heard::Recovered } else { Heard::Trusted }
    }

    /// Looks at every peer's silence, and returns those that became suspect, in order.
    pub fn tick(&mut self, now_ms: u64) -> Vec<K> {
        let late = self.observer.tick(now_ms);
        let mut suspected = Vec::new();
        for (key, peer) in &mut self.peers {
            if late {
                peer.armed_ms = peer.armed_ms.max(now_ms);
            } else if !peer.suspect && now_ms.saturating_sub(peer.armed_ms) > self.options.timeout_ms {
                peer.suspect = true;
                suspected.push(key.clone());
            }
        }
        suspected
    }

    /// Whether the last tick found it suspect and nothing was heard since.
    pub fn is_suspect(&self, peer: &K) -> bool {
        self.peers.get(peer).is_some_and(|peer| peer.suspect)
    }

    /// Everybody who is suspect, in order.
    pub fn suspects(&self) -> impl Iterator<Item = &K> {
        self.peers.iter().filter(|(_, peer)| peer.suspect).map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detector() -> HeartbeatDetector<u8> {
        let options = HeartbeatOptions { timeout_ms: 100, longest_tick_gap_ms: 60, peers: 2 };
        let mut detector = HeartbeatDetector::new(options, 0).unwrap();
        detector.register(1, 0).unwrap();
        detector
    }

    #[test]
    fn a_peer_is_suspect_once_and_only_past_the_time_out() {
        let mut detector = detector();
        assert_eq!(detector.tick(50), [0u8; 0]);
        assert_eq!(detector.tick(100), [0u8; 0]);
        assert_eq!(detector.tick(101), [1]);
        assert_eq!(detector.tick(150), [0u8; 0]);
        assert!(detector.is_suspect(&1));
        assert_eq!(detector.heartbeat(&1, 160), Heard::Recovered);
        assert_eq!(detector.heartbeat(&1, 170), Heard::Trusted);
        assert_eq!(detector.heartbeat(&9, 170), Heard::Unknown);
        assert_eq!(detector.suspects().count(), 0);
    }

    #[test]
    fn an_observer_that_was_late_suspects_nobody_and_listens_anew() {
        let mut detector = detector();
        assert_eq!(detector.tick(500), [0u8; 0], "the observer slept");
        assert_eq!(detector.tick(550), [0u8; 0]);
        assert_eq!(detector.tick(600), [0u8; 0]);
        assert_eq!(detector.tick(601), [1], "silence counts from the late tick");
        detector.tick(5_000);
        assert!(detector.is_suspect(&1), "what it saw while awake still holds");
    }

    #[test]
    fn peers_are_bounded_and_one_that_is_known_may_register_again() {
        let mut detector = detector();
        detector.register(2, 0).unwrap();
        assert_eq!(detector.register(3, 0), Err(HealthError::Full { part: "heartbeat detector", limit: 2 }));
        detector.register(2, 10).unwrap();
        assert!(detector.remove(&2) && !detector.remove(&2));
        detector.register(3, 0).unwrap();
    }

    #[test]
    fn options_name_all_that_is_wrong() {
        HeartbeatOptions::default().validate().unwrap();
        let wrong = HeartbeatOptions { timeout_ms: 0, longest_tick_gap_ms: 5, peers: 0 };
        let Err(HealthError::Options { problems, .. }) = wrong.validate() else { panic!("they passed") };
        let fields: Vec<&str> = problems.iter().map(|problem| problem.field).collect();
        assert_eq!(fields, ["timeout_ms", "longest_tick_gap_ms", "peers"]);
    }
}
