//! What happens next: events in the order of their time, and of their making where they coincide.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Events to come.
#[derive(Debug)]
pub struct Queue<T> {
    heap: BinaryHeap<Scheduled<T>>,
    sequence: u64,
}

#[derive(Debug)]
struct Scheduled<T> {
    at_us: u64,
    sequence: u64,
    event: T,
}

impl<T> PartialEq for Scheduled<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.at_us, self.sequence) == (other.at_us, other.sequence)
    }
}

impl<T> Eq for Scheduled<T> {}

impl<T> PartialOrd for Scheduled<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Scheduled<T> {
    /// Reversed, since the heap gives its greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at_us, other.sequence).cmp(&(self.at_us, self.sequence))
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue { heap: BinaryHeap::new(), sequence: 0 }
    }
}

impl<T> Queue<T> {
    /// When the next event is, in microseconds.
    pub fn next_us(&self) -> Option<u64> {
        self.heap.peek().map(|scheduled| scheduled.at_us)
    }

    /// Adds an event at a time in microseconds.
    pub fn push(&mut self, at_us: u64, event: T) {
        self.sequence += 1;
        self.heap.push(Scheduled { at_us, sequence: self.sequence, event });
    }

    /// Takes the next event with its time.
    pub fn pop(&mut self) -> Option<(u64, T)> {
        self.heap.pop().map(|next| (next.at_us, next.event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_by_their_making() {
        let mut queue = Queue::default();
        for (at_us, name) in [(5, 'c'), (3, 'a'), (5, 'd'), (3, 'b')] {
            queue.push(at_us, name);
        }
        let order: Vec<(u64, char)> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [(3, 'a'), (3, 'b'), (5, 'c'), (5, 'd')]);
    }
}
