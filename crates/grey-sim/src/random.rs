//! Chance, in integers only: a separate stream for each source, so that one more draw in one does not shift the others.

/// A stream of numbers: xoshiro256** (Blackman and Vigna, "Scrambled linear pseudorandom number generators", 2021),
/// seeded through SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub struct Stream {
    state: [u64; 4],
}

/// One step of SplitMix64.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

impl Stream {
    /// The stream of a source under a seed.
    pub fn new(seed: u64, source: u64) -> Stream {
        let mut state = seed ^ source.wrapping_mul(0xD1B5_4A32_D192_ED03);
        Stream { state: std::array::from_fn(|_| split_mix(&mut state)) }
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        let [first, second, third, fourth] = &mut self.state;
        let drawn = second.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = *second << 17;
        *third ^= *first;
        *fourth ^= *second;
        *second ^= *third;
        *first ^= *fourth;
        *third ^= shifted;
        *fourth = fourth.rotate_left(45);
        drawn
    }

    /// A number below `bound`; zero when that is zero. The high half of a product, so its bias is below one in 2^32 for
    /// the small bounds used here.
    pub fn below(&mut self, bound: u64) -> u64 {
        (u128::from(self.next()).wrapping_mul(u128::from(bound)) >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// True in so many of a million cases.
    pub fn chance(&mut self, per_million: u64) -> bool {
        per_million > 0 && self.below(1_000_000) < per_million
    }

    /// A position in a list of so many; zero for an empty one.
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }

    /// One of a list, if it has any.
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> Option<&'a T> {
        list.get(self.index(list.len()))
    }

    /// Puts a list into a random order (Fisher and Yates, 1938; Durstenfeld, 1964).
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            let other = self.index(last + 1);
            list.swap(last, other);
        }
    }
}

/// The sources of chance that go on through a run. Each planned fault and each operation of a client has one of its own
/// besides, so that leaving one out does not change the others.
#[derive(Debug, Clone)]
pub struct Streams {
    /// Delays, losses, duplicates.
    pub network: Stream,
    /// What a disk keeps and how long it takes.
    pub disk: Stream,
    /// Drift, skew, jumps, late ticks.
    pub clock: Stream,
    /// Which process crashes when.
    pub process: Stream,
    /// Seeds of election time-outs.
    pub election: Stream,
}

impl Streams {
    /// The streams of a seed.
    pub fn new(seed: u64) -> Streams {
        Streams {
            network: Stream::new(seed, 1),
            disk: Stream::new(seed, 2),
            clock: Stream::new(seed, 3),
            process: Stream::new(seed, 4),
            election: Stream::new(seed, 7),
        }
    }

    /// What the swarm draws before anything else happens.
    pub fn swarm(seed: u64) -> Stream {
        Stream::new(seed, 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_and_sources_differ() {
        let draw = |seed, source| {
            let mut stream = Stream::new(seed, source);
            (0..8).map(|_| stream.next()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7, 1), draw(7, 1));
        assert_ne!(draw(7, 1), draw(7, 2));
        assert_ne!(draw(7, 1), draw(8, 1));
    }

    #[test]
    fn draws_stay_in_their_bounds_and_reach_both_ends() {
        let mut stream = Stream::new(1, 1);
        let drawn: Vec<u64> = (0..10_000).map(|_| stream.between(3, 9)).collect();
        assert_eq!(drawn.iter().min(), Some(&3));
        assert_eq!(drawn.iter().max(), Some(&9));
        let hits = (0..100_000).filter(|_| stream.chance(100_000)).count();
        assert!((9_000..11_000).contains(&hits), "{hits} of 100,000 at one in ten");
    }

    #[test]
    fn the_generator_is_the_published_one() {
        // State 1, 2, 3, 4 gives these first numbers in the authors' program.
        let mut stream = Stream { state: [1, 2, 3, 4] };
        assert_eq!([stream.next(), stream.next(), stream.next()], [11_520, 0, 1_509_978_240]);
    }
}
