//! SHA-256 digests and the length-prefixed way in which Grey hashes structures.

use core::fmt;
use core::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::error::ProofError;

/// A SHA-256 digest (FIPS 180-4). Written as 64 lowercase hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Thirty-two zero bytes: the digest of nothing that exists.
    pub const ZERO: Digest = Digest([0; 32]);

    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second, third, fourth, ..] = self.0;
        write!(formatter, "Digest({first:02x}{second:02x}{third:02x}{fourth:02x}…)")
    }
}

impl FromStr for Digest {
    type Err = ProofError;

    fn from_str(text: &str) -> Result<Digest, ProofError> {
        fn nibble(digit: u8) -> Option<u8> {
            match digit {
                b'0'..=b'9' => Some(digit - b'0'),
                b'a'..=b'f' => Some(digit - b'a' + 10),
                _ => None,
            }
        }
        let mut bytes = [0u8; 32];
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(ProofError::NotADigest);
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = match pair {
                [high, low] => nibble(*high).zip(nibble(*low)).map(|(high, low)| high << 4 | low),
                _ => None,
            }
            .ok_or(ProofError::NotADigest)?;
        }
        Ok(Digest(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Digest)
        }
    }
}

/// A running SHA-256 over fields, each preceded by its length so that no two sequences of fields hash alike.
#[derive(Clone)]
pub struct DigestBuilder(Sha256);

impl DigestBuilder {
    /// Starts with a domain, so that digests of different kinds of structure never meet.
    pub fn domain(name: &str) -> DigestBuilder {
        let mut builder = DigestBuilder(Sha256::new());
        builder.field(name.as_bytes());
        builder
    }

    /// Adds a field: its length as eight little-endian bytes, then its bytes.
    pub fn field(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    /// Adds what is a sequence of such fields already, so that many small ones cost one call.
    pub fn fields(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Adds a number as eight little-endian bytes.
    pub fn number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    /// The digest.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// The length and digest of content that comes piece by piece.
#[derive(Debug, Clone, Default)]
pub struct StreamDigest {
    hash: Sha256,
    length_bytes: u64,
}

impl StreamDigest {
    /// Of nothing so far.
    pub fn new() -> StreamDigest {
        StreamDigest::default()
    }

    /// Adds the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.hash.update(piece);
        self.length_bytes = self.length_bytes.saturating_add(piece.len() as u64);
    }

    /// Length in bytes and digest of all pieces.
    pub fn finish(self) -> (u64, Digest) {
        (self.length_bytes, Digest(self.hash.finalize().into()))
    }
}

/// HMAC-SHA256 (RFC 2104) with a key of at most one block.
pub(crate) fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let pad = |filler: u8| {
        let mut block = [filler; 64];
        for (byte, key) in block.iter_mut().zip(key) {
            *byte ^= key;
        }
        block
    };
    let mut inner = Sha256::new();
    inner.update(pad(0x36));
    parts.iter().for_each(|part| inner.update(part));
    let mut outer = Sha256::new();
    outer.update(pad(0x5c));
    outer.update(inner.finalize());
    outer.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_reads_back_as_written_and_nothing_else_is_taken() {
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        for wrong in ["", "ba", &digest.to_string().to_uppercase(), &format!("{digest}0"), &"é".repeat(32)] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong} was taken");
        }
    }

    #[test]
    fn moving_a_byte_between_fields_changes_the_digest() {
        let hash = |fields: &[&[u8]]| {
            let mut builder = DigestBuilder::domain("test");
            fields.iter().for_each(|field| builder.field(field));
            builder.finish()
        };
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
        assert_ne!(hash(&[b"ab"]), hash(&[b"ab", b""]));
    }

    #[test]
    fn fields_that_were_gathered_hash_like_fields_one_by_one() {
        let (mut each, mut gathered) = (DigestBuilder::domain("test"), DigestBuilder::domain("test"));
        let mut bytes = Vec::new();
        for field in [&b"one"[..], b"", b"three"] {
            each.field(field);
            bytes.extend_from_slice(&(field.len() as u64).to_le_bytes());
            bytes.extend_from_slice(field);
        }
        gathered.fields(&bytes);
        assert_eq!(each.finish(), gathered.finish());
    }

    #[test]
    fn hmac_agrees_with_rfc_4231_case_2_with_its_key_padded() {
        let mut key = [0u8; 32];
        key[..4].copy_from_slice(b"Jefe");
        assert_eq!(
            Digest(hmac(&key, &[b"what do ya want ", b"for nothing?"])).to_string(),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }
}
