//! What issues certificates.

use std::net::IpAddr;

use base64::Engine as _;
use grey_core::{NodeRole, Tier};
use grey_proof::{Certificate, Digest, Envelope, Role, SigningKey, VerifyingKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType, SerialNumber,
};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::error::TrustError;
use crate::keys::{Signing, ed25519_of, key_of_request, spki_of};

const HOUR_MS: u64 = 3_600 * 1_000;
const DAY_MS: u64 = 24 * HOUR_MS;
/// How long the root's certificate holds.
const ROOT_MS: u64 = 20 * 365 * DAY_MS;
/// How long the issuing key's does.
const ISSUING_MS: u64 = 90 * DAY_MS;
/// How long a node's does, for TLS.
const NODE_MS: u64 = HOUR_MS;
/// A node whose clock lags a little must not find its certificate in the future.
const BACKDATED_MS: u64 = 5 * 60 * 1_000;

/// The issuing key with what it takes to use it. The root's key is not part of it.
pub struct Authority {
    cluster: Digest,
    issuing_seed: Zeroizing<[u8; 32]>,
    root: Vec<u8>,
    issuing: Vec<u8>,
    issuer: Envelope,
    not_after_ms: u64,
}

/// Version of a written authority.
const VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
struct Encoded {
    version: u8,
    cluster: Digest,
    issuing_seed: [u8; 32],
    root: Vec<u8>,
    issuing: Vec<u8>,
    issuer: Envelope,
    not_after_ms: u64,
}

/// A date as certificates have it, from milliseconds since 1970.
fn date(wall_ms: u64) -> Result<OffsetDateTime, TrustError> {
    let seconds = i64::try_from(wall_ms / 1_000).ok();
    let date = seconds.and_then(|seconds| OffsetDateTime::UNIX_EPOCH.checked_add(Duration::seconds(seconds)));
    date.ok_or_else(|| TrustError::Certificate("its date cannot be written".to_owned()))
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Grey");
    name.push(DnType::CommonName, common_name);
    name
}

fn authority_params(
    common_name: &str,
    is_root: bool,
    from_ms: u64,
    until_ms: u64,
) -> Result<CertificateParams, TrustError> {
    let mut params = CertificateParams::default();
    params.not_before = date(from_ms)?;
    params.not_after = date(until_ms)?;
    params.distinguished_name = named(common_name);
    // An issuing key signs nodes, and no further authority.
    params.is_ca =
        IsCa::Ca(if is_root { BasicConstraints::Unconstrained } else { BasicConstraints::Constrained(0) });
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

impl Authority {
    /// Makes the cluster's root certificate and its first issuing key, of `issuing_seed`, which must be random.
    ///
    /// # Errors
    /// [`TrustError::Certificate`] when the date cannot be written.
    pub fn found(
        root_key: &SigningKey,
        issuing_seed: [u8; 32],
        wall_ms: u64,
    ) -> Result<Authority, TrustError> {
        let cluster = root_key.verifying_key().id();
        let from_ms = wall_ms.saturating_sub(BACKDATED_MS);
        let short: String = cluster.to_string().chars().take(16).collect();
        let root_params = authority_params(
            &format!("Grey cluster {short} root"),
            true,
            from_ms,
            from_ms.saturating_add(ROOT_MS),
        )?;
        let root = root_params.self_signed(&Signing::new(root_key))?;
        let issuing_key = SigningKey::from_seed(issuing_seed);
        let not_after_ms = from_ms.saturating_add(ISSUING_MS);
        let issuing =
            authority_params(&format!("Grey cluster {short} issuing"), false, from_ms, not_after_ms)?
                .signed_by(
                    &Signing::new(&issuing_key),
                    &Issuer::from_params(&root_params, Signing::new(root_key)),
                )?;
        let key = issuing_key.verifying_key();
        let issuer = Certificate {
            cluster,
            node_id: key.id(),
            role: Role::Issuer,
            public_key: key,
            tier: Tier::None.name().to_owned(),
            serial: 1,
            not_before_ms: from_ms,
            not_after_ms,
        };
        Ok(Authority {
            cluster,
            issuing_seed: Zeroizing::new(issuing_seed),
            root: root.der().to_vec(),
            issuing: issuing.der().to_vec(),
            issuer: issuer.sign(root_key)?,
            not_after_ms,
        })
    }

    /// The bytes of a secret file.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let encoded = Encoded {
            version: VERSION,
            cluster: self.cluster,
            issuing_seed: *self.issuing_seed,
            root: self.root.clone(),
            issuing: self.issuing.clone(),
            issuer: self.issuer.clone(),
            not_after_ms: self.not_after_ms,
        };
        // Serialising to memory fails only for types without a known length, and this has none of those.
        Zeroizing::new(postcard::to_allocvec(&encoded).unwrap_or_default())
    }

    /// Reads what [`Authority::encode`] wrote; it must be of this cluster.
    ///
    /// # Errors
    /// [`TrustError::Unreadable`] for anything else.
    pub fn decode(bytes: &[u8], cluster: &Digest) -> Result<Authority, TrustError> {
        let unreadable = || TrustError::Unreadable("authority");
        let Ok((encoded, [])) = postcard::take_from_bytes::<Encoded>(bytes) else { return Err(unreadable()) };
        let Encoded { version, cluster: of, issuing_seed, root, issuing, issuer, not_after_ms } = encoded;
        let root_key = ed25519_of(&spki_of(&root)?).ok_or_else(unreadable)?;
        let issuing_key = SigningKey::from_seed(issuing_seed).verifying_key();
        let is_issuing = ed25519_of(&spki_of(&issuing)?) == Some(issuing_key.to_bytes());
        let root_key = VerifyingKey::from_bytes(&root_key)?;
        let certificate = Certificate::open(&issuer, [&root_key])?;
        let fits = version == VERSION
            && of == *cluster
            && root_key.id() == *cluster
            && is_issuing
            && certificate.public_key == issuing_key
            && certificate.role == Role::Issuer;
        if !fits {
            return Err(unreadable());
        }
        let issuing_seed = Zeroizing::new(issuing_seed);
        Ok(Authority { cluster: of, issuing_seed, root, issuing, issuer, not_after_ms })
    }

    /// The cluster.
    pub fn cluster(&self) -> Digest {
        self.cluster
    }

    /// The root's certificate, for clients: what a browser or curl is told to trust.
    pub fn root_pem(&self) -> String {
        pem(&self.root)
    }

    /// Until when the issuing key is good, milliseconds since 1970.
    pub fn not_after_ms(&self) -> u64 {
        self.not_after_ms
    }

    /// Whether a third of the issuing key's life or less is left, so that the root has to certify another one.
    pub fn needs_rekey(&self, wall_ms: u64) -> bool {
        wall_ms >= self.not_after_ms.saturating_sub(ISSUING_MS / 3)
    }

    /// The issuing key's certificate among the proofs.
    pub fn issuer(&self) -> &Envelope {
        &self.issuer
    }

    /// Certificates for TLS: the node's, the issuing key's and the root's, in DER. Of the request only the key counts, whose owner
    /// has proved that it is theirs. `addresses` are a server's names and addresses, under which clients find it.
    ///
    /// # Errors
    /// [`TrustError::Certificate`] for a request that is none, or an address that is none.
    pub fn issue_tls(
        &self,
        request: &[u8],
        node: &Digest,
        role: NodeRole,
        addresses: &[String],
        serial: u64,
        wall_ms: u64,
    ) -> Result<Vec<Vec<u8>>, TrustError> {
        let key = key_of_request(request)?;
        // A clock that is far off must not make a certificate that never holds together with its issuer's: a server that is known by
        // its key would not be let in by it.
        let (first_ms, last_ms) = (self.not_after_ms.saturating_sub(ISSUING_MS), self.not_after_ms);
        let from_ms =
            wall_ms.saturating_sub(BACKDATED_MS).clamp(first_ms, last_ms.saturating_sub(BACKDATED_MS));
        let until_ms = from_ms.saturating_add(BACKDATED_MS + NODE_MS).min(last_ms);
        let mut params = CertificateParams::default();
        params.not_before = date(from_ms)?;
        params.not_after = date(until_ms)?;
        params.serial_number = Some(SerialNumber::from(serial));
        let short: String = node.to_string().chars().take(16).collect();
        params.distinguished_name = named(&format!("{} {short}", role.name()));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![
            SanType::URI(format!("grey://{}/{}/{node}", self.cluster, role.name()).try_into()?),
            SanType::DnsName(format!("{short}.grey").try_into()?),
        ];
        for address in addresses {
            params.subject_alt_names.push(match address.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(address.clone().try_into()?),
            });
        }
        let issuing_key = SigningKey::from_seed(*self.issuing_seed);
        let issuer = Issuer::from_ca_cert_der(&self.issuing.as_slice().into(), Signing::new(&issuing_key))?;
        let leaf = params.signed_by(&key, &issuer)?;
        Ok(vec![leaf.der().to_vec(), self.issuing.clone(), self.root.clone()])
    }

    /// A certificate of a proof key. It holds as long as the issuing key's.
    ///
    /// # Errors
    /// [`TrustError::Proof`] when a date cannot be written.
    pub fn issue_proof(
        &self,
        public_key: &VerifyingKey,
        role: NodeRole,
        tier: Tier,
        serial: u64,
        wall_ms: u64,
    ) -> Result<Envelope, TrustError> {
        let certificate = Certificate {
            cluster: self.cluster,
            node_id: public_key.id(),
            role: match role {
                NodeRole::Server => Role::Server,
                NodeRole::Worker => Role::Worker,
            },
            public_key: *public_key,
            tier: tier.name().to_owned(),
            serial,
            not_before_ms: wall_ms.saturating_sub(BACKDATED_MS),
            not_after_ms: self.not_after_ms,
        };
        Ok(certificate.sign(&SigningKey::from_seed(*self.issuing_seed))?)
    }
}

/// The cluster's root key, from the last certificate of a chain.
///
/// # Errors
/// [`TrustError::Certificate`] when it is not of this cluster.
pub fn root_of_chain(chain: &[Vec<u8>], cluster: &Digest) -> Result<VerifyingKey, TrustError> {
    let foreign = || TrustError::Certificate("the chain does not end in the cluster's root".to_owned());
    let root = chain.last().ok_or_else(foreign)?;
    let key = VerifyingKey::from_bytes(&ed25519_of(&spki_of(root)?).ok_or_else(foreign)?)?;
    if key.id() == *cluster { Ok(key) } else { Err(foreign()) }
}

/// A certificate as text (RFC 7468).
pub fn pem(der: &[u8]) -> String {
    let encoded = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in encoded.as_bytes().chunks(64) {
        text.push_str(core::str::from_utf8(line).unwrap_or_default());
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}
