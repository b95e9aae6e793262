//! Seeded mutations of a byte string: what a fuzzer does without feedback.

/// A seeded source of choices: xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators,
/// scrambled", 2016).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The generator of a seed.
    pub fn seeded(seed: u64) -> Random {
        Random((seed ^ 0x6A09_E667_F3BC_C909).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below a bound; zero for a bound of zero.
    pub fn below(&mut self, bound: usize) -> usize {
        let drawn = usize::try_from(self.number() >> 16).unwrap_or(0);
        drawn.checked_rem(bound).unwrap_or(0)
    }

    /// So many bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| (self.number() >> 40) as u8).collect()
    }
}

/// Numbers at which decoders tend to be wrong.
const INTERESTING: [u64; 16] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    (1 << 53) - 1,
    1 << 53,
    u64::MAX - 1,
    u64::MAX,
];

/// The most bytes that a mutated input has beyond the one it came from.
const GROWTH_BYTES: usize = 4_096;

/// Changes an input in one to four ways; `others` are what it may be crossed with.
pub fn mutated(input: &[u8], others: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let most = input.len() + GROWTH_BYTES;
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(4) {
        change(&mut bytes, others, random);
    }
    bytes.truncate(most);
    bytes
}

fn change(bytes: &mut Vec<u8>, others: &[Vec<u8>], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    match random.below(11) {
        0 | 1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        2 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = random.number() as u8;
            }
        }
        3 => bytes.truncate(at),
        4 => {
            let end = (at + 1 + random.below(32)).min(bytes.len());
            bytes.drain(at.min(end)..end);
        }
        5 => {
            let length = 1 + random.below(16);
            let inserted = random.bytes(length);
            bytes.splice(at..at, inserted);
        }
        6 | 7 => write_number(bytes, at, random),
        8 => {
            let end = (at + 1 + random.below(64)).min(bytes.len());
            let copied = bytes.get(at..end).unwrap_or_default().repeat(1 + random.below(4));
            bytes.splice(at..at, copied);
        }
        9 => {
            // A byte that may be a length or a count, a little more or less.
            if let Some(byte) = bytes.get_mut(at) {
                *byte = byte.wrapping_add((random.below(9) as u8).wrapping_sub(4));
            }
        }
        _ => cross(bytes, at, others, random),
    }
}

/// Puts an interesting number in place, in one of the ways in which numbers are written.
fn write_number(bytes: &mut Vec<u8>, at: usize, random: &mut Random) {
    let number = INTERESTING.get(random.below(INTERESTING.len())).copied().unwrap_or(0);
    let (little, big) = (number.to_le_bytes(), number.to_be_bytes());
    let written = match random.below(7) {
        0 => little.get(..2).unwrap_or_default().to_vec(),
        1 => little.get(..4).unwrap_or_default().to_vec(),
        2 => little.to_vec(),
        3 => big.get(4..).unwrap_or_default().to_vec(),
        4 => big.to_vec(),
        5 => variable(number),
        _ => number.to_string().into_bytes(),
    };
    let end = if random.below(2) == 0 { at } else { (at + written.len()).min(bytes.len()) };
    bytes.splice(at..end, written);
}

/// A number in groups of seven bits, lowest first, as postcard and protobuf write it.
pub(crate) fn variable(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(10);
    while number >= 0x80 {
        bytes.push((number as u8 & 0x7f) | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// Puts a part of another input here, in place of the rest or before it.
fn cross(bytes: &mut Vec<u8>, at: usize, others: &[Vec<u8>], random: &mut Random) {
    let Some(other) = others.get(random.below(others.len())) else { return };
    let from = random.below(other.len() + 1);
    let to = from + random.below(other.len() - from + 1);
    let part = other.get(from..to).unwrap_or_default().to_vec();
    let end = if random.below(2) == 0 { at } else { bytes.len() };
    bytes.splice(at..end, part);
}
