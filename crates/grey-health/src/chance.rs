//! Chance from a seed, so that a run can be replayed.

/// A seeded generator: SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014). Good for
/// jitter; not for secrets.
///
/// ```
/// let mut chance = grey_health::Chance::seeded(7);
/// assert!(chance.at_most(10) <= 10);
/// assert_eq!(grey_health::Chance::seeded(7).next(), grey_health::Chance::seeded(7).next());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chance {
    state: u64,
}

impl Chance {
    /// A generator whose numbers follow from the seed alone.
    pub fn seeded(seed: u64) -> Chance {
        Chance { state: seed }
    }

    /// The next number, evenly from all of 64 bits.
    #[expect(clippy::should_implement_trait, reason = "it never ends, so it is no iterator")]
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to the bound, both included. The high half of a product is taken, whose unevenness is below one in
    /// 2⁶⁴ divided by the bound: nothing for jitter.
    pub fn at_most(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * (u128::from(bound) + 1)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_published_generator() {
        let mut chance = Chance::seeded(1_234_567);
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([chance.next(), chance.next(), chance.next()], expected);
    }

    #[test]
    fn both_ends_are_reached_and_nothing_lies_beyond() {
        let mut chance = Chance::seeded(3);
        let mut met = [0u32; 4];
        (0..4_000).for_each(|_| met[chance.at_most(3) as usize] += 1);
        assert!(met.iter().all(|times| (900..1_100).contains(times)), "{met:?}");
        assert_eq!(chance.at_most(0), 0);
        chance.at_most(u64::MAX);
    }
}
