//! The accrual failure detector: how improbable a silence is, given how regularly a peer was heard.

use std::collections::BTreeMap;

use crate::detector::{Heard, Observer};
use crate::error::HealthError;
use crate::limits;
use crate::options::Checks;
use crate::phi_value::phi_milli;
use crate::samples::Samples;

/// What a [`PhiDetector`] goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhiOptions {
    /// A peer is suspect from this phi on, in thousandths; 1 to 50,000. At 8,000 one silence in 10⁸ is a false alarm, if
    /// heartbeats are as regular as they were.
    pub threshold_milli: u32,
    /// How many intervals are remembered for each peer; 10 to [`limits::PHI_SAMPLES`].
    pub window: usize,
    /// The interval that is assumed before any was measured, in milliseconds; 1 to an hour.
    pub expected_interval_ms: u64,
    /// The least deviation that is reckoned with, in milliseconds; 1 to an hour. Without it a very regular peer would be
    /// suspect for being a moment late.
    pub deviation_floor_ms: u64,
    /// A silence that is acceptable beyond the mean, in milliseconds; 0 to an hour.
    pub pause_ms: u64,
    /// After a failover a peer is suspect when it was silent for longer than this, in milliseconds; 1 to a day.
    pub failover_timeout_ms: u64,
    /// So many measured intervals of a peer end that; 1 to `window`.
    pub failover_samples: usize,
    /// An observer whose ticks lie further apart than this was late, in milliseconds; 1 to `failover_timeout_ms`.
    pub longest_tick_gap_ms: u64,
    /// The most peers; 1 to [`limits::PEERS`].
    pub peers: usize,
}

impl Default for PhiOptions {
    /// For workers, which send a heartbeat every 500 ms.
    fn default() -> PhiOptions {
        PhiOptions {
            threshold_milli: 8_000,
            window: 100,
            expected_interval_ms: 500,
            deviation_floor_ms: 100,
            pause_ms: 1_000,
            failover_timeout_ms: 3_000,
            failover_samples: 10,
            longest_tick_gap_ms: 500,
            peers: 10_000,
        }
    }
}

impl PhiOptions {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`HealthError::Options`] with the whole list of what is wrong.
    pub fn validate(&self) -> Result<(), HealthError> {
        let mut checks = Checks::default();
        checks.within("threshold_milli", self.threshold_milli.into(), 1..=u64::from(limits::PHI_MILLI / 2));
        checks.within("window", self.window as u64, 10..=limits::PHI_SAMPLES as u64);
        checks.within("expected_interval_ms", self.expected_interval_ms, 1..=limits::PHI_SAMPLE_MS);
        checks.within("deviation_floor_ms", self.deviation_floor_ms, 1..=limits::PHI_SAMPLE_MS);
        checks.within("pause_ms", self.pause_ms, 0..=limits::PHI_SAMPLE_MS);
        checks.within("failover_timeout_ms", self.failover_timeout_ms, 1..=limits::OPTION_MS);
        checks.within("failover_samples", self.failover_samples as u64, 1..=self.window as u64);
        checks.within("longest_tick_gap_ms", self.longest_tick_gap_ms, 1..=self.failover_timeout_ms);
        checks.within("peers", self.peers as u64, 1..=limits::PEERS as u64);
        checks.finish("phi detector")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Peer {
    /// Since when its silence counts.
    armed_ms: u64,
    /// When the last heartbeat came, if the next one ends an interval that is worth a sample.
    previous_ms: Option<u64>,
    samples: Samples,
    /// Measured intervals that are still to come before a failover is over for this peer.
    failover_samples_left: usize,
    suspect: bool,
}

/// Suspects peers whose silence has become improbable (Hayashibara, Défago, Yared, Katayama: "The φ accrual failure
/// detector", SRDS 2004).
///
/// Suspicion arises in [`tick`](PhiDetector::tick) and ends with the next heartbeat. What is not an interval of the peer's own
/// is no sample: the time since a registration, a failover or a tick that came late, a silence that was suspect, and
/// whatever arrives while the observer is late or within `longest_tick_gap_ms` after it, since that had queued up.
///
/// ```
/// use grey_health::{PhiDetector, PhiOptions};
///
/// let mut detector = PhiDetector::new(PhiOptions { peers: 5, ..PhiOptions::default() }, 0)?;
/// detector.register("a", 0)?;
/// for now_ms in (500..10_000).step_by(500) {
///     detector.heartbeat(&"a", now_ms);
///     assert!(detector.tick(now_ms).is_empty());
/// }
/// // It was heard at 9,500; the mean is 500, the acceptable pause 1,000.
/// assert!([10_000, 10_500, 11_000, 11_500].iter().all(|now_ms| detector.tick(*now_ms).is_empty()));
/// assert_eq!(detector.tick(11_700), ["a"]);
/// # Ok::<(), grey_health::HealthError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhiDetector<K> {
    options: PhiOptions,
    observer: Observer,
    /// What comes until then may have queued up while the observer was late.
    unsure_until_ms: u64,
    peers: BTreeMap<K, Peer>,
}

impl<K: Ord + Clone> PhiDetector<K> {
    /// A detector without peers, whose observer is awake now.
    ///
    /// # Errors
    /// [`HealthError::Options`].
    pub fn new(options: PhiOptions, now_ms: u64) -> Result<PhiDetector<K>, HealthError> {
        options.validate()?;
        let observer = Observer::new(options.longest_tick_gap_ms, now_ms);
        Ok(PhiDetector { options, observer, unsure_until_ms: 0, peers: BTreeMap::new() })
    }

    /// Takes in a peer as if it were heard now, with two assumed samples. One that is registered already starts anew; after a failover it
    /// stays with the fixed time-out for as many intervals as before.
    ///
    /// # Errors
    /// [`HealthError::Full`] at the bound of peers.
    pub fn register(&mut self, peer: K, now_ms: u64) -> Result<(), HealthError> {
        if !self.peers.contains_key(&peer) && self.peers.len() >= self.options.peers {
            return Err(HealthError::Full { part: "phi detector", limit: self.options.peers });
        }
        let failover_samples_left = self.peers.get(&peer).map_or(0, |known| known.failover_samples_left);
        let fresh = self.fresh(now_ms, failover_samples_left);
        self.peers.insert(peer, fresh);
        Ok(())
    }

    /// This node has become the one that watches: whoever is registered starts anew, and is judged by the fixed time-out
    /// until enough of its intervals were measured.
    pub fn failed_over(&mut self, now_ms: u64) {
        self.observer = Observer::new(self.options.longest_tick_gap_ms, now_ms);
        self.unsure_until_ms = now_ms;
        let fresh = self.fresh(now_ms, self.options.failover_samples);
        self.peers.values_mut().for_each(|peer| *peer = fresh.clone());
    }

    fn fresh(&self, now_ms: u64, failover_samples_left: usize) -> Peer {
        let samples = Samples::assumed(self.options.window, self.options.expected_interval_ms);
        Peer { armed_ms: now_ms, previous_ms: None, samples, failover_samples_left, suspect: false }
    }

    /// Forgets a peer, and says whether it was known.
    pub fn remove(&mut self, peer: &K) -> bool {
        self.peers.remove(peer).is_some()
    }

    /// A sign of life.
    pub fn heartbeat(&mut self, peer: &K, now_ms: u64) -> Heard {
        let unsure = self.observer.is_late(now_ms) || now_ms < self.unsure_until_ms;
        let Some(peer) = self.peers.get_mut(peer) else { return Heard::Unknown };
        let was_suspect = core::mem::take(&mut peer.suspect);
        let outage = was_suspect || peer.is_silent_too_long(&self.options, now_ms);
        match peer.previous_ms {
            Some(previous_ms) if !unsure && !outage => {
                peer.samples.push(now_ms.saturating_sub(previous_ms));
                peer.failover_samples_left = peer.failover_samples_left.saturating_sub(1);
            }
            _ => {}
        }
        peer.previous_ms = (!unsure).then_some(now_ms);
        peer.armed_ms = peer.armed_ms.max(now_ms);
        if was_suspect { Heard::Recovered } else { Heard::Trusted }
    }

    /// Looks at every peer's silence, and returns those that became suspect, in order. A tick that comes late suspects nobody,
    /// and every silence counts from it; who was suspect before stays so until it is heard.
    pub fn tick(&mut self, now_ms: u64) -> Vec<K> {
        let late = self.observer.tick(now_ms);
        if late {
            self.unsure_until_ms = now_ms.saturating_add(self.options.longest_tick_gap_ms);
        }
        let mut suspected = Vec::new();
        for (key, peer) in &mut self.peers {
            if late {
                peer.armed_ms = peer.armed_ms.max(now_ms);
                peer.previous_ms = None;
            } else if !peer.suspect && peer.is_silent_too_long(&self.options, now_ms) {
                peer.suspect = true;
                suspected.push(key.clone());
            }
        }
        suspected
    }

    /// The phi of a peer now, in thousandths, 0 to [`limits::PHI_MILLI`]; it never falls while the peer is silent.
    /// `None` when the peer is unknown.
    pub fn phi_milli(&self, peer: &K, now_ms: u64) -> Option<u32> {
        self.peers.get(peer).map(|peer| peer.phi_milli(&self.options, now_ms))
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

impl Peer {
    fn phi_milli(&self, options: &PhiOptions, now_ms: u64) -> u32 {
        let elapsed_ms = now_ms.saturating_sub(self.armed_ms);
        phi_milli(elapsed_ms, &self.samples, options.pause_ms, options.deviation_floor_ms)
    }

    fn is_silent_too_long(&self, options: &PhiOptions, now_ms: u64) -> bool {
        if self.failover_samples_left > 0 {
            now_ms.saturating_sub(self.armed_ms) > options.failover_timeout_ms
        } else {
            self.phi_milli(options, now_ms) >= options.threshold_milli
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detector() -> PhiDetector<u8> {
        let mut detector = PhiDetector::new(PhiOptions { peers: 2, ..PhiOptions::default() }, 0).unwrap();
        detector.register(1, 0).unwrap();
        detector
    }

    /// Ticks every 100 ms up to a time, and returns when somebody became suspect.
    fn first_suspicion(detector: &mut PhiDetector<u8>, from_ms: u64, to_ms: u64) -> Option<u64> {
        (from_ms..=to_ms).step_by(100).find(|now_ms| !detector.tick(*now_ms).is_empty())
    }

    #[test]
    fn a_peer_that_never_spoke_is_judged_by_the_assumed_samples() {
        // Mean 500 plus pause 1,000, deviation 125: phi is 8 at 5.6 deviations, that is 2,202 ms.
        assert_eq!(first_suspicion(&mut detector(), 100, 5_000), Some(2_300));
    }

    #[test]
    fn a_regular_peer_is_judged_by_the_floor_of_the_deviation() {
        let mut detector = detector();
        for now_ms in (0..60_000).step_by(500) {
            detector.heartbeat(&1, now_ms);
            assert_eq!(first_suspicion(&mut detector, now_ms, now_ms + 400), None);
        }
        // Heard at 59,500; suspect 500 + 1,000 + 5.6 × 100 ms later.
        assert_eq!(first_suspicion(&mut detector, 60_000, 70_000), Some(61_600));
        assert_eq!(detector.heartbeat(&1, 80_000), Heard::Recovered);
    }

    #[test]
    fn after_a_failover_the_time_out_is_fixed_until_ten_samples() {
        let mut detector = detector();
        detector.failed_over(0);
        assert_eq!(first_suspicion(&mut detector, 100, 5_000), Some(3_100));
        detector.failed_over(5_000);
        for beat in 1..=10u64 {
            first_suspicion(&mut detector, 4_600 + beat * 500, 5_000 + beat * 500);
            detector.heartbeat(&1, 5_000 + beat * 500);
        }
        let mut nine_samples = detector.clone();
        assert_eq!(first_suspicion(&mut nine_samples, 10_100, 14_000), Some(13_100));
        first_suspicion(&mut detector, 10_100, 10_500);
        detector.heartbeat(&1, 10_500);
        assert_eq!(first_suspicion(&mut detector, 10_600, 14_000), Some(12_600), "ten samples: phi again");
    }

    #[test]
    fn who_announces_itself_to_a_new_observer_is_no_better_known_than_before() {
        let mut detector = detector();
        detector.failed_over(0);
        detector.register(1, 0).unwrap();
        assert_eq!(first_suspicion(&mut detector, 100, 5_000), Some(3_100));
    }

    #[test]
    fn an_observer_that_was_late_suspects_nobody_and_takes_no_sample() {
        let mut detector = detector();
        for now_ms in (0..20_000).step_by(500) {
            detector.heartbeat(&1, now_ms);
            detector.tick(now_ms);
        }
        let before = detector.peers[&1].samples.clone();
        // It slept for ten seconds; then what had queued up arrives at once, some before its tick and some after.
        detector.heartbeat(&1, 30_000);
        assert_eq!(detector.tick(30_000), [0u8; 0]);
        for now_ms in 30_000..30_010 {
            detector.heartbeat(&1, now_ms);
        }
        detector.tick(30_400);
        detector.heartbeat(&1, 30_500);
        assert_eq!(detector.peers[&1].samples, before);
        detector.tick(30_800);
        detector.heartbeat(&1, 31_000);
        assert_ne!(detector.peers[&1].samples, before, "the first whole interval is a sample");
        assert_eq!(detector.tick(31_000), [0u8; 0]);
    }

    #[test]
    fn an_outage_is_no_sample() {
        let mut detector = detector();
        detector.heartbeat(&1, 100);
        assert!(first_suspicion(&mut detector, 100, 20_000).is_some());
        let before = detector.peers[&1].samples.clone();
        detector.heartbeat(&1, 20_000);
        assert_eq!(detector.peers[&1].samples, before);
    }

    #[test]
    fn options_name_all_that_is_wrong() {
        PhiOptions::default().validate().unwrap();
        let wrong = PhiOptions { threshold_milli: 0, deviation_floor_ms: 0, ..PhiOptions::default() };
        let Err(HealthError::Options { problems, .. }) = wrong.validate() else { panic!("they passed") };
        let fields: Vec<&str> = problems.iter().map(|problem| problem.field).collect();
        assert_eq!(fields, ["threshold_milli", "deviation_floor_ms"]);
    }
}
