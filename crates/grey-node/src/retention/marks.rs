//! Which blobs are named, in bounded memory: a Bloom filter (Bloom, Space/time trade-offs in hash coding with allowable
//! errors, 1970). It never forgets one; now and then it takes one for named that is not, which then goes another time, as
//! each sweep draws other places.

use grey_proof::{Digest, DigestBuilder};

/// Places of each digest.
const PLACES: u64 = 7;
/// The bounds of a filter's size in bytes: seven places of ten bits a digest are wrong once in a hundred times, so the
/// largest is good for twenty-five million.
const SMALLEST_BYTES: usize = 64 * 1024;
const LARGEST_BYTES: usize = 32 * 1024 * 1024;

/// The blobs that are named.
pub(crate) struct Marks {
    words: Vec<u64>,
    seed: [u64; 2],
    set: u64,
}

impl Marks {
    /// A filter of about so many bytes. The seed is chance, so that nobody can send content that is never removed.
    pub(crate) fn new(bytes: usize, seed: [u64; 2]) -> Marks {
        let words = bytes.clamp(SMALLEST_BYTES, LARGEST_BYTES).next_power_of_two() / 8;
        Marks { words: vec![0; words], seed, set: 0 }
    }

    /// The size that the next one should have, in bytes: half of its bits set is when it is as good as it should be.
    pub(crate) fn next_bytes(&self) -> usize {
        let (bytes, bits) = (self.words.len() * 8, self.words.len() as u64 * 64);
        if self.set > bits / 2 {
            bytes * 2
        } else if self.set < bits / 16 {
            bytes / 2
        } else {
            bytes
        }
    }

    /// Two hashes make all places (Kirsch and Mitzenmacher, Less hashing, same performance, 2006).
    fn places(&self, digest: &Digest) -> impl Iterator<Item = (usize, u64)> + use<> {
        let mut hash = DigestBuilder::domain("grey/marks/v1");
        self.seed.iter().for_each(|number| hash.number(*number));
        hash.field(&digest.0);
        let Digest([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ..]) = hash.finish();
        let first = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let step = u64::from_le_bytes([i, j, k, l, m, n, o, p]) | 1;
        let bits = self.words.len() as u64 * 64;
        (0..PLACES).map(move |number| {
            let place = first.wrapping_add(number.wrapping_mul(step)) % bits;
            ((place / 64) as usize, 1 << (place % 64))
        })
    }

    pub(crate) fn insert(&mut self, digest: &Digest) {
        for (word, bit) in self.places(digest) {
            if let Some(word) = self.words.get_mut(word) {
                self.set += u64::from(*word & bit == 0);
                *word |= bit;
            }
        }
    }

    /// Whether it is named; rarely also where it is not.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.places(digest).all(|(word, bit)| self.words.get(word).is_none_or(|word| word & bit != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u64) -> Digest {
        Digest::of(&number.to_le_bytes())
    }

    #[test]
    fn none_is_ever_forgotten_and_few_are_taken_for_what_they_are_not() {
        let mut marks = Marks::new(0, [1, 2]);
        (0..50_000).for_each(|number| marks.insert(&digest(number)));
        assert!((0..50_000).all(|number| marks.has(&digest(number))));
        let wrong = (50_000..100_000).filter(|number| marks.has(&digest(*number))).count();
        assert!(wrong < 1_500, "{wrong} of 50000");
        // Another seed is wrong about others.
        let mut again = Marks::new(0, [3, 4]);
        (0..50_000).for_each(|number| again.insert(&digest(number)));
        let both = (50_000..100_000)
            .filter(|number| marks.has(&digest(*number)) && again.has(&digest(*number)))
            .count();
        assert!(both < 100, "{both} of {wrong} would stay for ever");
    }

    #[test]
    fn a_filter_that_is_too_full_is_followed_by_a_larger_one_within_bounds() {
        let mut marks = Marks::new(0, [1, 2]);
        assert_eq!(marks.next_bytes(), SMALLEST_BYTES / 2);
        (0..100_000).for_each(|number| marks.insert(&digest(number)));
        assert_eq!(marks.next_bytes(), SMALLEST_BYTES * 2);
        assert_eq!(Marks::new(usize::MAX / 4, [0, 0]).words.len() * 8, LARGEST_BYTES);
    }
}
