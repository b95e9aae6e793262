//! A bounded window of intervals, as integers.

use std::collections::VecDeque;

use crate::limits;

/// The last so many intervals between heartbeats, with their sums kept exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Samples {
    window: usize,
    values_ms: VecDeque<u64>,
    sum_ms: u64,
    sum_of_squares: u128,
}

impl Samples {
    /// Starts from two assumed samples, a quarter of the expected interval to each side of it, so that the mean is what is
    /// expected and the deviation is not zero.
    pub(crate) fn assumed(window: usize, expected_interval_ms: u64) -> Samples {
        let mut samples = Samples { window, values_ms: VecDeque::new(), sum_ms: 0, sum_of_squares: 0 };
        samples.push(expected_interval_ms - expected_interval_ms / 4);
        samples.push(expected_interval_ms.saturating_add(expected_interval_ms / 4));
        samples
    }

    /// Adds an interval; the oldest goes when the window is full.
    pub(crate) fn push(&mut self, interval_ms: u64) {
        while self.values_ms.len() >= self.window {
            let Some(oldest) = self.values_ms.pop_front() else { break };
            self.sum_ms -= oldest;
            self.sum_of_squares -= u128::from(oldest) * u128::from(oldest);
        }
        let interval_ms = interval_ms.min(limits::PHI_SAMPLE_MS);
        self.values_ms.push_back(interval_ms);
        self.sum_ms += interval_ms;
        self.sum_of_squares += u128::from(interval_ms) * u128::from(interval_ms);
    }

    /// How many; at least one.
    pub(crate) fn count(&self) -> u64 {
        self.values_ms.len().max(1) as u64
    }

    /// Their sum, in milliseconds.
    pub(crate) fn sum_ms(&self) -> u64 {
        self.sum_ms
    }

    /// The square of their count times their variance (of the population), exactly: n Σx² − (Σx)².
    pub(crate) fn scaled_variance(&self) -> u128 {
        let squares = u128::from(self.count()) * self.sum_of_squares;
        squares.saturating_sub(u128::from(self.sum_ms) * u128::from(self.sum_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_are_those_of_the_last_values() {
        let mut samples = Samples::assumed(3, 100);
        assert_eq!((samples.count(), samples.sum_ms()), (2, 200));
        assert_eq!(samples.scaled_variance(), 4 * 25 * 25);
        for value in [7, 9, 1, 5, 6] {
            samples.push(value);
        }
        assert_eq!((samples.count(), samples.sum_ms()), (3, 12));
        assert_eq!(samples.scaled_variance(), 3 * (1 + 25 + 36) - 144);
    }

    #[test]
    fn an_endless_silence_counts_as_the_longest_sample() {
        let mut samples = Samples::assumed(1, 100);
        samples.push(u64::MAX);
        assert_eq!(samples.sum_ms(), limits::PHI_SAMPLE_MS);
        assert_eq!(samples.scaled_variance(), 0);
    }
}
