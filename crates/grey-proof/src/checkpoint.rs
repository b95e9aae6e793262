//! Checkpoints of the cluster's log: signed notes, after the C2SP specifications `tlog-checkpoint` and `signed-note`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::error::ProofError;
use crate::keys::{SigningKey, VerifyingKey};

/// The algorithm's number in a signed note: Ed25519.
const ALGORITHM_ED25519: u8 = 1;
/// More signatures than any cluster has servers.
const MOST_SIGNATURES: usize = 64;

/// A statement of servers about the cluster's log: at this size it had this root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCheckpoint {
    /// The cluster.
    pub cluster: Digest,
    /// Leaves in the log.
    pub size: u64,
    /// Root over them.
    pub root: Digest,
    /// Signatures: the key's name, the first four bytes of its hash, the signature.
    signatures: Vec<(String, [u8; 4], Vec<u8>)>,
}

fn key_name(key: &VerifyingKey) -> String {
    key.id().to_string()
}

/// The key's hash as the note has it: over name, algorithm and key, cut to four bytes.
fn key_hash(key: &VerifyingKey) -> [u8; 4] {
    let mut hash = Sha256::new();
    hash.update(key_name(key).as_bytes());
    hash.update([b'\n', ALGORITHM_ED25519]);
    hash.update(key.to_bytes());
    let digest: [u8; 32] = hash.finalize().into();
    let [first, second, third, fourth, ..] = digest;
    [first, second, third, fourth]
}

impl SignedCheckpoint {
    /// A checkpoint that nobody has signed yet.
    pub fn new(cluster: Digest, size: u64, root: Digest) -> SignedCheckpoint {
        SignedCheckpoint { cluster, size, root, signatures: Vec::new() }
    }

    /// The signed text: origin, size, root.
    fn text(&self) -> String {
        format!("grey/{}\n{}\n{}\n", self.cluster, self.size, STANDARD.encode(self.root.0))
    }

    /// The signature of a key over it.
    pub fn signature(&self, key: &SigningKey) -> Vec<u8> {
        key.sign(self.text().as_bytes()).to_vec()
    }

    /// Adds a server's signature.
    pub fn sign(&mut self, key: &SigningKey) {
        let verifying = key.verifying_key();
        self.signatures.push((key_name(&verifying), key_hash(&verifying), self.signature(key)));
    }

    /// Adds the signature that another server made. One that has signed already does not sign again.
    ///
    /// # Errors
    /// When the signature is not this key's over this checkpoint, or there is no room for it.
    pub fn add(&mut self, key: &VerifyingKey, signature: &[u8]) -> Result<(), ProofError> {
        key.verify(self.text().as_bytes(), signature)?;
        if self.verify(key).is_ok() {
            return Ok(());
        }
        if self.signatures.len() >= MOST_SIGNATURES {
            let reason = format!("it has {MOST_SIGNATURES} signatures; no more are taken");
            return Err(ProofError::Unreadable { expected: "a checkpoint with room", reason });
        }
        self.signatures.push((key_name(key), key_hash(key), signature.to_vec()));
        Ok(())
    }

    /// Whether `key` signed it.
    pub fn verify(&self, key: &VerifyingKey) -> Result<(), ProofError> {
        let (name, hash) = (key_name(key), key_hash(key));
        let found = self.signatures.iter().find(|(signer, prefix, _)| *signer == name && *prefix == hash);
        let (_, _, signature) = found.ok_or(ProofError::MissingSignature { key_id: name })?;
        key.verify(self.text().as_bytes(), signature)
    }

    /// How many signatures it has.
    pub fn signature_count(&self) -> usize {
        self.signatures.len()
    }

    /// The note.
    pub fn encode(&self) -> String {
        let mut note = self.text();
        note.push('\n');
        for (name, hash, signature) in &self.signatures {
            let bytes: Vec<u8> = hash.iter().chain(signature).copied().collect();
            note.push_str(&format!("\u{2014} {name} {}\n", STANDARD.encode(bytes)));
        }
        note
    }

    /// Reads a note; what does not write back the same is refused.
    pub fn decode(note: &str) -> Result<SignedCheckpoint, ProofError> {
        let unreadable =
            |reason: &str| ProofError::Unreadable { expected: "a checkpoint", reason: reason.to_owned() };
        let mut lines = note.lines();
        let origin = lines.next().and_then(|line| line.strip_prefix("grey/"));
        let cluster = origin.ok_or_else(|| unreadable("its origin is no cluster of Grey"))?.parse()?;
        let size = lines.next().and_then(|line| line.parse().ok());
        let size = size.ok_or_else(|| unreadable("its second line is no size"))?;
        let root = lines.next().and_then(|line| STANDARD.decode(line).ok());
        let root = root.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let root = Digest(root.ok_or_else(|| unreadable("its third line is no root"))?);
        if lines.next() != Some("") {
            return Err(unreadable("an empty line must follow the root"));
        }
        let mut signatures = Vec::new();
        for line in lines.take(MOST_SIGNATURES) {
            let (name, bytes) = line
                .strip_prefix("\u{2014} ")
                .and_then(|line| line.split_once(' '))
                .ok_or_else(|| unreadable("a line is no signature"))?;
            let bytes = STANDARD.decode(bytes).map_err(|_| unreadable("a signature is not base64"))?;
            let (hash, signature) =
                bytes.split_first_chunk::<4>().ok_or_else(|| unreadable("a signature is too short"))?;
            signatures.push((name.to_owned(), *hash, signature.to_vec()));
        }
        let checkpoint = SignedCheckpoint { cluster, size, root, signatures };
        if checkpoint.encode() == note {
            Ok(checkpoint)
        } else {
            Err(unreadable("it is not in canonical form"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_sign_the_same_checkpoint_once_and_no_other() {
        let (own, other) = (SigningKey::from_seed([4; 32]), SigningKey::from_seed([5; 32]));
        let mut checkpoint = SignedCheckpoint::new(Digest::of(b"cluster"), 12, Digest::of(b"root"));
        checkpoint.sign(&own);
        let signature = checkpoint.signature(&other);
        for _ in 0..2 {
            checkpoint.add(&other.verifying_key(), &signature).unwrap();
            assert_eq!(checkpoint.signature_count(), 2, "who signs twice counts once");
        }
        let read = SignedCheckpoint::decode(&checkpoint.encode()).unwrap();
        assert_eq!(read.verify(&other.verifying_key()), Ok(()));
        let third = SigningKey::from_seed([6; 32]);
        let fork = SignedCheckpoint::new(Digest::of(b"cluster"), 12, Digest::of(b"fork"));
        for (key, signature) in [
            (&third, &signature),
            (&third, &fork.signature(&third)),
            (&third, &signature[..63].to_vec()),
            (&third, &Vec::new()),
        ] {
            assert!(checkpoint.add(&key.verifying_key(), signature).is_err());
            assert_eq!(checkpoint.signature_count(), 2);
        }
        for seed in 10..=255 {
            let key = SigningKey::from_seed([seed; 32]);
            drop(checkpoint.add(&key.verifying_key(), &checkpoint.signature(&key)));
        }
        assert_eq!(checkpoint.signature_count(), MOST_SIGNATURES);
        assert!(SignedCheckpoint::decode(&checkpoint.encode()).is_ok());
    }

    #[test]
    fn a_note_reads_back_and_any_other_byte_is_refused_or_breaks_the_signature() {
        let key = SigningKey::from_seed([4; 32]);
        let mut checkpoint = SignedCheckpoint::new(Digest::of(b"cluster"), 12, Digest::of(b"root"));
        checkpoint.sign(&key);
        let note = checkpoint.encode();
        let read = SignedCheckpoint::decode(&note).unwrap();
        assert_eq!(read, checkpoint);
        assert_eq!(read.verify(&key.verifying_key()), Ok(()));
        assert!(read.verify(&SigningKey::from_seed([5; 32]).verifying_key()).is_err());
        for position in 0..note.len() {
            let mut bytes = note.clone().into_bytes();
            bytes[position] ^= 1;
            let Ok(text) = String::from_utf8(bytes) else { continue };
            let held = SignedCheckpoint::decode(&text).and_then(|read| read.verify(&key.verifying_key()));
            assert!(held.is_err(), "byte {position} may be changed");
        }
    }
}
