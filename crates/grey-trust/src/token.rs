//! Secrets that people carry: how they are written. Where they are stored, only their digests are.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use grey_proof::Digest;
use zeroize::Zeroizing;

use crate::error::TrustError;

const JOIN_PREFIX: &str = "grey-join-1.";
const API_PREFIX: &str = "grey-token-1.";

fn decode<const LENGTH: usize>(
    text: &str,
    prefix: &str,
    kind: &'static str,
) -> Result<Zeroizing<[u8; LENGTH]>, TrustError> {
    let wrong = |reason| TrustError::Token { kind, reason };
    let rest = text.trim().strip_prefix(prefix).ok_or_else(|| wrong("it does not begin like one"))?;
    let bytes =
        URL_SAFE_NO_PAD.decode(rest).map_err(|_| wrong("it is not whole, or has other characters"))?;
    let bytes = Zeroizing::new(bytes);
    Ok(Zeroizing::new(bytes.as_slice().try_into().map_err(|_| wrong("it is of another length"))?))
}

/// A right to enter a cluster, once: the cluster's identity, so that a node knows whom to believe, and a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    cluster: Digest,
    secret: Zeroizing<[u8; 32]>,
}

impl JoinToken {
    /// A token of 32 random bytes.
    pub fn new(cluster: Digest, secret: [u8; 32]) -> JoinToken {
        JoinToken { cluster, secret: Zeroizing::new(secret) }
    }

    /// The cluster.
    pub fn cluster(&self) -> Digest {
        self.cluster
    }

    /// The secret, as it is shown to a server.
    pub fn secret(&self) -> [u8; 32] {
        *self.secret
    }

    /// By what the cluster knows it.
    pub fn id(&self) -> Digest {
        Digest::of(self.secret.as_slice())
    }

    /// The token as text.
    pub fn reveal(&self) -> String {
        let mut bytes = Zeroizing::new([0; 64]);
        let (cluster, secret) = bytes.split_at_mut(32);
        cluster.copy_from_slice(&self.cluster.0);
        secret.copy_from_slice(self.secret.as_slice());
        format!("{JOIN_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes.as_slice()))
    }
}

impl FromStr for JoinToken {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<JoinToken, TrustError> {
        let bytes = decode::<64>(text, JOIN_PREFIX, "join token")?;
        let (mut cluster, mut secret) = ([0; 32], Zeroizing::new([0; 32]));
        let (first, second) = bytes.split_at(32);
        cluster.copy_from_slice(first);
        secret.copy_from_slice(second);
        Ok(JoinToken { cluster: Digest(cluster), secret })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "JoinToken({})", self.id())
    }
}

/// A token of the client API.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiToken(Zeroizing<[u8; 32]>);

impl ApiToken {
    /// A token of 32 random bytes.
    pub fn new(secret: [u8; 32]) -> ApiToken {
        ApiToken(Zeroizing::new(secret))
    }

    /// By what the cluster knows it.
    pub fn id(&self) -> Digest {
        Digest::of(self.0.as_slice())
    }

    /// The token as text.
    pub fn reveal(&self) -> String {
        format!("{API_PREFIX}{}", URL_SAFE_NO_PAD.encode(self.0.as_slice()))
    }
}

impl FromStr for ApiToken {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<ApiToken, TrustError> {
        decode::<32>(text, API_PREFIX, "token").map(ApiToken)
    }
}

impl fmt::Debug for ApiToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ApiToken({})", self.id())
    }
}
