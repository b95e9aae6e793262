/// What is wrong with a certificate, a token or a message.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A certificate, or a request for one, cannot be made or read.
    #[error("the certificate, or the request for one, is not usable: {0}")]
    Certificate(String),
    /// TLS refuses the configuration.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// A token is none.
    #[error("this is no {kind}: {reason}")]
    Token {
        /// Which kind of token was expected.
        kind: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A root key that is not the one that was expected.
    #[error("the root key is of cluster {given}, and not of this one; nothing was changed")]
    ForeignRoot {
        /// The cluster that it is the root key of.
        given: grey_proof::Digest,
    },
    /// An issuing key that must not follow the current one.
    #[error("the next issuing key is not taken: {0}")]
    Issuer(String),
    /// A file of secrets holds something else.
    #[error("the {0} cannot be read")]
    Unreadable(&'static str),
    /// A date or a key of the proofs.
    #[error(transparent)]
    Proof(#[from] grey_proof::ProofError),
}

impl From<rcgen::Error> for TrustError {
    fn from(error: rcgen::Error) -> TrustError {
        TrustError::Certificate(error.to_string())
    }
}
