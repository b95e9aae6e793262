//! Everything that can be wrong with a proof or a part of one.

/// Why a proof, a key or a statement is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Not 64 lowercase hexadecimal digits.
    #[error("not a digest: 64 lowercase hexadecimal digits are expected")]
    NotADigest,
    /// A number that JSON readers would not all read alike.
    #[error("`{field}` is {value}; the limit is {}", crate::canonical::MAX_INTEGER)]
    NumberOutOfRange {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A time that RFC 3339 cannot write.
    #[error("`{field}` lies after the year 9999")]
    TimeOutOfRange {
        /// Which field.
        field: &'static str,
    },
    /// A result that names a file twice.
    #[error("a result names the file {0} twice")]
    DuplicateFile(String),
    /// Bytes that are not a public key of Ed25519.
    #[error("not an Ed25519 public key")]
    NotAKey,
    /// A signature that its key did not make over this content.
    #[error("the signature of key {key_id} does not hold")]
    BadSignature {
        /// The key that should have signed.
        key_id: String,
    },
    /// No signature of the key that was asked for.
    #[error("there is no signature of key {key_id}")]
    MissingSignature {
        /// The key that should have signed.
        key_id: String,
    },
    /// Signed content of another type: what one type means must not be read as another.
    #[error("the signed content is of type {found}; {expected} is expected")]
    WrongPayloadType {
        /// The type that was signed.
        found: String,
        /// The type that was asked for.
        expected: String,
    },
    /// A certificate that its issuer may not have signed: of an issuer, of another cluster, or from when the issuer was not certified.
    #[error("the issuer of the certificate may not vouch for it")]
    NotVouchedFor,
    /// A document that does not read as what it should be.
    #[error("not {expected}: {reason}")]
    Unreadable {
        /// What it should be.
        expected: &'static str,
        /// What is wrong, and where.
        reason: String,
    },
}
