//! What is done where the root key is: it certifies another issuing key, and stays there.

use std::path::Path;

use grey_api::{IssuingKeyAsked, IssuingKeyCertified};
use grey_proof::{Digest, SigningKey, VerifyingKey};
use grey_trust::{TrustError, certify_issuer, from_pem, pem};

use crate::clock::wall_ms;
use crate::error::NodeError;
use crate::identity::secret_in;

/// Has the root key in a file certify the issuing key that a cluster asks for.
///
/// # Errors
/// When the file holds no key, or that of another cluster, or what is asked for cannot be read.
pub fn certify(root_key: &Path, asked: &IssuingKeyAsked) -> Result<IssuingKeyCertified, NodeError> {
    let root_key = SigningKey::from_seed(secret_in(root_key)?);
    let given = root_key.verifying_key().id();
    if given.to_string() != asked.cluster {
        return Err(TrustError::ForeignRoot { given }.into());
    }
    let key: Digest =
        asked.public_key.parse().map_err(|_| TrustError::Unreadable("key that is to be certified"))?;
    let (key, root) = (VerifyingKey::from_bytes(&key.0)?, from_pem(&asked.root_certificate)?);
    let certified = certify_issuer(&root_key, &root, &key, asked.serial, wall_ms())?;
    Ok(IssuingKeyCertified { certificate: pem(&certified.issuing), issuer: certified.issuer })
}
