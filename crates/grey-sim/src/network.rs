//! Links between nodes: each direction for itself, with delay, loss, duplication, clogs, cuts, flapping and a bounded rate.

use std::ops::Range;

use crate::faults::{Counters, Fault};
use crate::random::Stream;

/// A node by its position among all: servers first, then workers, then clients; from 0.
pub type NodeIndex = usize;

/// How links behave in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkOptions {
    /// Shortest time a message takes, in microseconds.
    pub shortest_us: u64,
    /// Longest time a message usually takes, in microseconds.
    pub longest_us: u64,
    /// Lost, of a million.
    pub loss: u64,
    /// Delivered twice, of a million.
    pub duplicate: u64,
    /// Delayed beyond the usual, of a million.
    pub delay: u64,
    /// The longest of those delays, in microseconds.
    pub delay_us: u64,
    /// Whether messages of a link may overtake one another.
    pub reorder: bool,
    /// Answers to clients that are lost, of a million.
    pub answer_lost: u64,
    /// Whether messages between servers and workers may come twice or in another order: their real connections would not
    /// let them, and the protocol must not depend on it.
    pub unordered_workers: bool,
}

/// What a message is to its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Between servers, or a client's question.
    Plain,
    /// An answer to a client.
    Answer,
    /// Between a server and a worker.
    Worker,
}

#[derive(Debug, Clone, Copy, Default)]
struct Link {
    /// Nothing passes until then.
    cut_until_us: u64,
    /// What is sent until then arrives no earlier than then.
    clogged_until_us: u64,
    /// Until when the link goes down and up, and the length of each half.
    flap: (u64, u64),
    /// Until when it is congested, and its rate in bytes a millisecond.
    congested: (u64, u64),
    /// When the last byte that was sent has left.
    free_at_us: u64,
    /// When the last message arrived.
    last_arrival_us: u64,
    /// Bytes that it has taken.
    taken_bytes: u64,
}

/// What a congested link holds at most: the time that its queue takes to drain, in microseconds.
const QUEUE_US: u64 = 400_000;

/// How much later something arrives that a connection had to send again: the least time-out of TCP on Linux, in microseconds.
const REPEATED_US: u64 = 200_000;

/// All links.
#[derive(Debug)]
pub struct Network {
    nodes: usize,
    links: Vec<Link>,
    options: LinkOptions,
    healed: bool,
    streams: Range<NodeIndex>,
}

impl Network {
    /// Links between so many nodes.
    pub fn new(nodes: usize, options: LinkOptions) -> Network {
        Network { nodes, links: vec![Link::default(); nodes * nodes], options, healed: false, streams: 0..0 }
    }

    fn link(&mut self, from: NodeIndex, to: NodeIndex) -> Option<&mut Link> {
        self.links.get_mut(from * self.nodes + to)
    }

    /// When a message arrives; none, one or two times.
    pub fn send(
        &mut self,
        now_us: u64,
        (from, to): (NodeIndex, NodeIndex),
        bytes: usize,
        traffic: Traffic,
        chance: &mut Stream,
        counters: &mut Counters,
    ) -> [Option<u64>; 2] {
        let (options, healed) = (self.options, self.healed);
        let may_mix = traffic != Traffic::Worker || options.unordered_workers;
        let is_stream = self.streams.contains(&from) || self.streams.contains(&to);
        let mut took_us = chance.between(options.shortest_us, options.longest_us);
        let Some(link) = self.link(from, to) else { return [None, None] };
        if now_us < link.cut_until_us {
            return [None, None];
        }
        let (flap_until_us, half_us) = link.flap;
        if now_us < flap_until_us && (now_us / half_us.max(1)).is_multiple_of(2) {
            counters.count(Fault::Flap);
            return [None, None];
        }
        if !healed && chance.chance(options.loss) {
            counters.count(Fault::Loss);
            if !is_stream {
                return [None, None];
            }
            took_us += REPEATED_US;
            while chance.chance(options.loss) {
                took_us += REPEATED_US;
            }
        }
        if !healed && traffic == Traffic::Answer && chance.chance(options.answer_lost) {
            counters.count(Fault::AnswerLost);
            return [None, None];
        }
        if !healed && chance.chance(options.delay) {
            counters.count(Fault::Delay);
            took_us += chance.between(options.longest_us, options.delay_us);
        }
        link.taken_bytes += bytes as u64;
        let mut leaves_us = now_us;
        let (congested_until_us, rate) = link.congested;
        if now_us < congested_until_us {
            let starts_us = link.free_at_us.max(now_us);
            if starts_us - now_us > QUEUE_US {
                counters.count(Fault::Congestion);
                return [None, None];
            }
            leaves_us = starts_us + (bytes as u64 + 60) * 1_000 / rate.max(1);
            link.free_at_us = leaves_us;
        }
        let mut arrives_us = (leaves_us + took_us).max(link.clogged_until_us);
        if arrives_us < link.last_arrival_us {
            if options.reorder && may_mix && !healed && !is_stream {
                counters.count(Fault::Reorder);
            } else {
                arrives_us = link.last_arrival_us;
            }
        }
        link.last_arrival_us = link.last_arrival_us.max(arrives_us);
        if !healed && may_mix && chance.chance(options.duplicate) {
            counters.count(Fault::Duplicate);
            let again_us = arrives_us + chance.between(options.shortest_us, options.delay_us.max(50_000));
            return [Some(arrives_us), Some(again_us)];
        }
        [Some(arrives_us), None]
    }

    /// Cuts one direction until a time.
    pub fn cut(&mut self, from: NodeIndex, to: NodeIndex, until_us: u64) {
        if let Some(link) = self.link(from, to) {
            link.cut_until_us = link.cut_until_us.max(until_us);
        }
    }

    /// Whether nothing passes in one direction now.
    pub fn is_cut(&self, now_us: u64, from: NodeIndex, to: NodeIndex) -> bool {
        self.links.get(from * self.nodes + to).is_some_and(|link| now_us < link.cut_until_us)
    }

    /// Bytes that one direction has taken since the last storm ended.
    pub fn taken_bytes(&self, from: NodeIndex, to: NodeIndex) -> u64 {
        self.links.get(from * self.nodes + to).map_or(0, |link| link.taken_bytes)
    }

    /// To and from these nodes everything travels on connections, which send again what was lost: it is late, and so is all behind it.
    pub fn set_streams(&mut self, nodes: Range<NodeIndex>) {
        self.streams = nodes;
    }

    /// Ends the cut of one direction.
    pub fn join(&mut self, from: NodeIndex, to: NodeIndex) {
        if let Some(link) = self.link(from, to) {
            link.cut_until_us = 0;
        }
    }

    /// Cuts everything between two groups, both directions.
    pub fn separate(&mut self, one: &[NodeIndex], other: &[NodeIndex], until_us: u64) {
        for left in one {
            for right in other {
                self.cut(*left, *right, until_us);
                self.cut(*right, *left, until_us);
            }
        }
    }

    /// Holds everything of one direction back until a time.
    pub fn clog(&mut self, from: NodeIndex, to: NodeIndex, until_us: u64) {
        if let Some(link) = self.link(from, to) {
            link.clogged_until_us = link.clogged_until_us.max(until_us);
        }
    }

    /// Lets one direction go down and up until a time.
    pub fn flap(&mut self, from: NodeIndex, to: NodeIndex, until_us: u64, half_us: u64) {
        if let Some(link) = self.link(from, to) {
            link.flap = (until_us, half_us);
        }
    }

    /// Lets one direction carry only so many bytes a millisecond until a time.
    pub fn congest(&mut self, from: NodeIndex, to: NodeIndex, until_us: u64, rate: u64) {
        if let Some(link) = self.link(from, to) {
            link.congested = (until_us, rate);
        }
    }

    /// Ends every fault of the network for good.
    pub fn heal(&mut self) {
        self.healed = true;
        for link in &mut self.links {
            *link = Link { last_arrival_us: link.last_arrival_us.min(link.free_at_us), ..Link::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> LinkOptions {
        LinkOptions {
            shortest_us: 100,
            longest_us: 500,
            loss: 0,
            duplicate: 0,
            delay: 0,
            delay_us: 0,
            reorder: false,
            answer_lost: 0,
            unordered_workers: true,
        }
    }

    fn sent(network: &mut Network, now_us: u64, link: (usize, usize), chance: &mut Stream) -> Option<u64> {
        network.send(now_us, link, 1_000, Traffic::Plain, chance, &mut Counters::default())[0]
    }

    #[test]
    fn a_cut_holds_in_one_direction_and_ends_by_itself() {
        let (mut network, mut chance) = (Network::new(2, options()), Stream::new(1, 1));
        network.cut(0, 1, 1_000);
        assert_eq!(sent(&mut network, 999, (0, 1), &mut chance), None);
        assert!(sent(&mut network, 999, (1, 0), &mut chance).is_some());
        assert!(sent(&mut network, 1_000, (0, 1), &mut chance).is_some());
    }

    #[test]
    fn without_reordering_a_link_keeps_the_order() {
        let (mut network, mut chance) = (Network::new(2, options()), Stream::new(1, 1));
        let arrivals: Vec<u64> =
            (0..200).filter_map(|at| sent(&mut network, at, (0, 1), &mut chance)).collect();
        assert!(arrivals.is_sorted());
    }

    #[test]
    fn a_congested_link_delays_by_its_rate_and_drops_what_its_queue_cannot_hold() {
        let (mut network, mut chance) = (Network::new(2, options()), Stream::new(1, 1));
        network.congest(0, 1, 1_000_000, 10);
        let arrivals: Vec<Option<u64>> =
            (0..10).map(|_| sent(&mut network, 0, (0, 1), &mut chance)).collect();
        assert!(arrivals.first().copied().flatten().is_some_and(|at| at >= 100_000));
        assert_eq!(arrivals.last(), Some(&None));
    }

    #[test]
    fn loss_comes_as_often_as_it_is_set() {
        let lossy = LinkOptions { loss: 100_000, ..options() };
        let (mut network, mut chance) = (Network::new(2, lossy), Stream::new(1, 1));
        let lost = (0..10_000).filter(|at| sent(&mut network, *at, (0, 1), &mut chance).is_none()).count();
        assert!((900..1_100).contains(&lost), "{lost} of 10,000");
    }
}
