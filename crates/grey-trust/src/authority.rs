//! What issues certificates.

use std::net::IpAddr;

use base64::Engine as _;
use grey_core::{NodeRole, Tier};
use grey_proof::{Certificate, Digest, Envelope, Role, SigningKey, VerifyingKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::error::TrustError;
use crate::keys::{Signing, certificate_request, ed25519_of, key_of_request, spki, spki_of};
use crate::tls::Trust;

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
/// The same of servers and the machine on which the root's key certifies another issuing key.
const ISSUER_BACKDATED_MS: u64 = HOUR_MS;

/// The issuing key with what it takes to use it. The root's key is not part of it.
pub struct Authority {
    cluster: Digest,
    issuing_seed: Zeroizing<[u8; 32]>,
    root: Vec<u8>,
    issuing: Vec<u8>,
    issuer: Envelope,
    /// What `issuer` says.
    certificate: Certificate,
}

/// What the root's key says of an issuing key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertifiedIssuer {
    /// The key's certificate for TLS, in DER.
    pub issuing: Vec<u8>,
    /// Its certificate among the proofs.
    pub issuer: Envelope,
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

/// How a cluster is called in its certificates.
fn short(id: &Digest) -> String {
    id.to_string().chars().take(16).collect()
}

fn certify(
    root_key: &SigningKey,
    root: &[u8],
    key: &VerifyingKey,
    serial: u64,
    from_ms: u64,
) -> Result<CertifiedIssuer, TrustError> {
    let cluster = root_key.verifying_key().id();
    let not_after_ms = from_ms.saturating_add(ISSUING_MS);
    let name = format!("Grey cluster {} issuing", short(&cluster));
    let issuing = authority_params(&name, false, from_ms, not_after_ms)?.signed_by(
        &SubjectPublicKeyInfo::from_der(&spki(&key.to_bytes()))?,
        &Issuer::from_ca_cert_der(&root.into(), Signing::new(root_key))?,
    )?;
    let issuer = Certificate {
        cluster,
        node_id: key.id(),
        role: Role::Issuer,
        public_key: *key,
        tier: Tier::None.name().to_owned(),
        serial,
        not_before_ms: from_ms,
        not_after_ms,
    };
    Ok(CertifiedIssuer { issuing: issuing.der().to_vec(), issuer: issuer.sign(root_key)? })
}

/// Has the root's key certify another issuing key, below the root's certificate that the cluster has, in DER.
///
/// # Errors
/// [`TrustError::ForeignRoot`] when the key is not the one of that certificate, [`TrustError::Certificate`] when a date cannot be written.
pub fn certify_issuer(
    root_key: &SigningKey,
    root: &[u8],
    key: &VerifyingKey,
    serial: u64,
    wall_ms: u64,
) -> Result<CertifiedIssuer, TrustError> {
    let given = root_key.verifying_key();
    if ed25519_of(&spki_of(root)?) != Some(given.to_bytes()) {
        return Err(TrustError::ForeignRoot { given: given.id() });
    }
    certify(root_key, root, key, serial, wall_ms.saturating_sub(ISSUER_BACKDATED_MS))
}

/// Whether a third of an issuing key's life or less is left, so that the root has to certify another one.
pub fn needs_rekey(not_after_ms: u64, wall_ms: u64) -> bool {
    wall_ms >= not_after_ms.saturating_sub(ISSUING_MS / 3)
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
        let root_params = authority_params(
            &format!("Grey cluster {} root", short(&cluster)),
            true,
            from_ms,
            from_ms.saturating_add(ROOT_MS),
        )?;
        let root = root_params.self_signed(&Signing::new(root_key))?.der().to_vec();
        let key = SigningKey::from_seed(issuing_seed).verifying_key();
        let certified = certify(root_key, &root, &key, 1, from_ms)?;
        Authority::of_parts(&cluster, Zeroizing::new(issuing_seed), root, certified)
    }

    /// The issuing key of `issuing_seed` with what the root's key has said of it, below the root's certificate that the cluster has.
    /// Everything that it is to issue is tried.
    ///
    /// # Errors
    /// [`TrustError::Issuer`] when the root of this cluster has not certified this key, or for dates at which it is of no use.
    pub fn next(
        cluster: &Digest,
        issuing_seed: [u8; 32],
        root: Vec<u8>,
        certified: CertifiedIssuer,
        wall_ms: u64,
    ) -> Result<Authority, TrustError> {
        let refuse = |reason: String| TrustError::Issuer(reason);
        let next = Authority::of_parts(cluster, Zeroizing::new(issuing_seed), root, certified);
        let next = next.map_err(|_| {
            refuse("the root of this cluster did not certify the key that was asked for".to_owned())
        })?;
        let Certificate { not_before_ms, not_after_ms, .. } = next.certificate;
        if wall_ms < not_before_ms {
            return Err(refuse(
                "it begins in the future; see that the clocks of the servers and of this machine agree"
                    .to_owned(),
            ));
        }
        if needs_rekey(not_after_ms, wall_ms) || not_after_ms > wall_ms.saturating_add(ISSUING_MS + DAY_MS) {
            let days = ISSUING_MS / DAY_MS;
            return Err(refuse(format!(
                "it has expired, ends too soon or too late; {days} days are usual; see that the clocks of the servers and of this machine agree"
            )));
        }
        let request = certificate_request(&next.issuing_seed)?;
        for at_ms in [wall_ms, not_after_ms] {
            let chain = next.issue_tls(&request, cluster, NodeRole::Server, &[], 1, at_ms)?;
            let last_ms = at_ms.min(not_after_ms.saturating_sub(BACKDATED_MS));
            if !Trust::of_cluster(*cluster).holds(&chain, last_ms) {
                return Err(refuse("its certificate for TLS is not good for what it is for".to_owned()));
            }
        }
        Ok(next)
    }

    fn of_parts(
        cluster: &Digest,
        issuing_seed: Zeroizing<[u8; 32]>,
        root: Vec<u8>,
        certified: CertifiedIssuer,
    ) -> Result<Authority, TrustError> {
        let unreadable = || TrustError::Unreadable("authority");
        let CertifiedIssuer { issuing, issuer } = certified;
        let root_key = VerifyingKey::from_bytes(&ed25519_of(&spki_of(&root)?).ok_or_else(unreadable)?)?;
        let key = SigningKey::from_seed(*issuing_seed).verifying_key();
        let is_issuing = ed25519_of(&spki_of(&issuing)?) == Some(key.to_bytes());
        let certificate = Certificate::open(&issuer, [&root_key])?;
        let fits = root_key.id() == *cluster
            && is_issuing
            && certificate.cluster == *cluster
            && certificate.public_key == key
            && certificate.role == Role::Issuer;
        if !fits {
            return Err(unreadable());
        }
        Ok(Authority { cluster: *cluster, issuing_seed, root, issuing, issuer, certificate })
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
            not_after_ms: self.not_after_ms(),
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
        let certified = CertifiedIssuer { issuing, issuer };
        let authority = Authority::of_parts(cluster, Zeroizing::new(issuing_seed), root, certified)?;
        if version != VERSION || of != *cluster || authority.not_after_ms() != not_after_ms {
            return Err(unreadable());
        }
        Ok(authority)
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
        self.certificate.not_after_ms
    }

    /// The root's certificate, in DER.
    pub fn root(&self) -> &[u8] {
        &self.root
    }

    /// What the issuing key's certificate among the proofs says.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Whether it was this issuing key that issued a certificate of a proof key, of this tier.
    pub fn vouches_for(&self, envelope: &Envelope, tier: Tier) -> bool {
        let opened = Certificate::open(envelope, [&self.certificate.public_key]);
        opened.is_ok_and(|certificate| certificate.tier == tier.name())
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
        let (first_ms, last_ms) = (self.certificate.not_before_ms, self.certificate.not_after_ms);
        let from_ms =
            wall_ms.saturating_sub(BACKDATED_MS).min(last_ms.saturating_sub(BACKDATED_MS)).max(first_ms);
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
            // One that began before its issuer did would hold for nobody.
            not_before_ms: wall_ms.saturating_sub(BACKDATED_MS).max(self.certificate.not_before_ms),
            not_after_ms: self.certificate.not_after_ms,
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

/// Reads one certificate as text, back into DER.
///
/// # Errors
/// [`TrustError::Certificate`] when the text has none.
pub fn from_pem(text: &str) -> Result<Vec<u8>, TrustError> {
    let read = CertificateDer::from_pem_slice(text.as_bytes());
    read.map(|der| der.to_vec()).map_err(|error| TrustError::Certificate(error.to_string()))
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
