//! Who belongs to the cluster and who may speak: commands that change it, and what nodes and people bring along.

use std::sync::LazyLock;

use grey_core::{
    AdmitNode, Command, CordonNode, CreateJoinToken, CreateTenant, CreateToken, EnrolFounder, Entry,
    ForgetNode, JoinTokenRow, Keeper, NewNode, NodeRole, NodeStanding, NodeVersion, RaiseFeatureLevel,
    RateLimit, Recover, RenewNode, RevokeJoinToken, RevokeToken, SetIssuingAuthority, SetNodeAddress,
    SetNodeStanding, SetNodeVersion, SetTenantQuota, SetTenantSuspended, State, TaskDefaults, TenantId, Tier,
    TokenRole, TokenRow,
};
use grey_proof::{Digest, SigningKey};
use grey_trust::join::{Challenge, Evidence, Hello, JoinMessage, Reject, RejectCode, software_evidence};
use grey_trust::{
    ApiToken, Authority, CertifiedIssuer, JoinToken, TlsIdentity, certificate_request, certify_issuer,
    from_pem, peer_of, pem,
};

use crate::bytes::Bytes;
use crate::commands::{applied, founding};

const WALL_MS: u64 = 1_790_000_000_000;

fn node(seed: u8, role: NodeRole) -> NewNode {
    let public_key = [seed; 32];
    let address = if role == NodeRole::Server { format!("host-{seed}:7654") } else { String::new() };
    NewNode {
        node: Digest::of(&public_key),
        public_key,
        tls_key: Digest([seed; 32]),
        name: format!("host-{seed}"),
        role,
        address,
        tier: Tier::Software,
        evidence: Digest::ZERO,
        serial: seed.into(),
        certificate: (Digest([seed; 32]), vec![seed; 4]),
    }
}

fn token(bytes: &mut Bytes<'_>) -> TokenRow {
    let role = bytes.pick(&TokenRole::ALL).unwrap_or(TokenRole::Viewer);
    let of_tenant = role.is_of_tenant() != bytes.chance(8);
    let created_wall_ms = bytes.near(WALL_MS);
    TokenRow {
        id: Digest([bytes.below(6); 32]),
        name: "somebody".to_owned(),
        role,
        tenant: of_tenant.then_some(TenantId(2)),
        expires_wall_ms: bytes.near(created_wall_ms.saturating_add(3)),
        created_wall_ms,
        created_by: String::new(),
    }
}

/// A command of this kind that bytes choose.
pub(crate) fn command(bytes: &mut Bytes<'_>) -> Command {
    let (kind, seed) = (bytes.below(19), bytes.below(5));
    let role = if seed.is_multiple_of(2) { NodeRole::Server } else { NodeRole::Worker };
    let (id, which) = (Digest([seed; 32]), node(seed, role).node);
    match kind {
        0 => Command::EnrolFounder(EnrolFounder {
            node: node(0, NodeRole::Server),
            token: token(bytes),
            wall_ms: WALL_MS,
        }),
        1 => Command::CreateJoinToken(CreateJoinToken {
            token: JoinTokenRow {
                id,
                role,
                created_wall_ms: WALL_MS,
                expires_wall_ms: bytes.near(WALL_MS + 3),
            },
        }),
        2 => Command::AdmitNode(AdmitNode {
            token: id,
            nonce: [bytes.below(4); 32],
            node: NewNode { tls_key: Digest([bytes.below(8); 32]), ..node(seed, role) },
            wall_ms: bytes.near(WALL_MS),
        }),
        3 => Command::RenewNode(RenewNode {
            node: which,
            nonce: [bytes.byte(); 32],
            tls_key: Digest([bytes.below(8); 32]),
            tier: if bytes.chance(8) { Tier::None } else { Tier::Hardware },
            evidence: Digest::ZERO,
            serial: bytes.near(5),
            certificate: bytes.chance(2).then(|| (Digest([bytes.byte(); 32]), bytes.slice(8).to_vec())),
            wall_ms: bytes.near(WALL_MS),
        }),
        4 => {
            let standings = [NodeStanding::Admitted, NodeStanding::Leaving, NodeStanding::Blocked];
            let standing = bytes.pick(&standings).unwrap_or(NodeStanding::Admitted);
            Command::SetNodeStanding(SetNodeStanding { node: which, standing })
        }
        5 => {
            let address = String::from_utf8_lossy(bytes.slice(20)).into_owned();
            Command::SetNodeAddress(SetNodeAddress { node: which, address })
        }
        6 => Command::ForgetNode(ForgetNode { node: which }),
        7 => Command::RevokeJoinToken(RevokeJoinToken { id }),
        8 => Command::CreateToken(CreateToken { token: token(bytes) }),
        9 => Command::RevokeToken(RevokeToken { id }),
        10 => {
            let defaults = TaskDefaults {
                resources: grey_core::Resources::default(),
                timeout_ms: bytes.near(1_000),
                output_limit_bytes: 0,
                priority: 0,
            };
            let name = String::from_utf8_lossy(bytes.slice(4)).into_owned();
            let weight_milli = bytes.near(1_000) as u32;
            Command::CreateTenant(CreateTenant { name, defaults, weight_milli })
        }
        11 => Command::Recover(Recover { keeper: Keeper::Survivor(which), wall_ms: WALL_MS }),
        12 => {
            let issuers = vec![(Digest([bytes.below(8); 32]), bytes.slice(8).to_vec())];
            let keeper = Keeper::Newcomer { node: Box::new(node(seed, role)), token: token(bytes), issuers };
            Command::Recover(Recover { keeper, wall_ms: WALL_MS })
        }
        14 => Command::SetNodeVersion(SetNodeVersion {
            node: which,
            version: NodeVersion {
                understands: bytes.below(6).into(),
                name: String::from_utf8_lossy(bytes.slice(4)).into_owned(),
            },
        }),
        15 => Command::RaiseFeatureLevel(RaiseFeatureLevel { level: 3 + u16::from(bytes.below(4)) }),
        16 => Command::SetTenantQuota(SetTenantQuota {
            tenant: TenantId(seed.into()),
            weight_milli: bytes.chance(2).then(|| bytes.near(1_000) as u32),
            queued_tasks: bytes.chance(2).then(|| bytes.chance(2).then(|| bytes.near(20))),
            rate: bytes.chance(2).then(|| {
                bytes.chance(2).then(|| RateLimit { tasks_per_second: bytes.near(5), burst: bytes.near(20) })
            }),
        }),
        17 => Command::SetIssuingAuthority(SetIssuingAuthority {
            follows: bytes.chance(2).then(|| Digest([bytes.below(8); 32])),
            previous: bytes.chance(2).then(|| (Digest([bytes.below(8); 32]), bytes.slice(8).to_vec())),
            issuer: (Digest([bytes.below(8); 32]), bytes.slice(8).to_vec()),
            serial: bytes.near(3),
            not_after_wall_ms: bytes.near(WALL_MS.saturating_add(3)),
            wall_ms: WALL_MS,
        }),
        13 => Command::CordonNode(CordonNode { node: which, cordoned: bytes.chance(2) }),
        _ => Command::SetTenantSuspended(SetTenantSuspended {
            tenant: TenantId(seed.into()),
            suspended: bytes.chance(2),
        }),
    }
}

/// A founding, a server, a token to join with and who used one.
pub(crate) const STEPS: [&[u8]; 6] = [
    &[0, 0, 3],
    &[1, 1, 5],
    &[2, 1, 0, 1, 5],
    &[1, 2, 5],
    &[3, 0, 9, 7, 0, 0, 0, 4, 1, 8, 2, 1, 1, 5],
    &[8, 0, 3],
];

/// A cluster with nodes and tokens, the same every time.
pub(crate) fn enrolled() -> State {
    static ENROLLED: LazyLock<State> = LazyLock::new(|| {
        let mut state = State::new();
        let commands = STEPS.iter().map(|step| command(&mut Bytes::new(step)));
        let entries = commands.map(|command| Entry { time_ms: 0, command });
        for entry in [founding()].into_iter().chain(entries) {
            applied(&mut state, 1, &entry.encode().expect("a step of the corpus is encoded"));
        }
        assert!(state.nodes().count() == 2 && state.tokens().count() > 0 && state.join_tokens().count() > 0);
        state
    });
    ENROLLED.clone()
}

/// One entry of each kind.
pub(crate) fn entries() -> Vec<Vec<u8>> {
    let commands = (0..18).map(|kind| command(&mut Bytes::new(&[kind, 1, 5, 5, 5, 5, 5, 5])));
    let entries = commands.map(|command| Entry { time_ms: 9, command });
    entries.map(|entry| entry.encode().expect("a command is encoded")).collect()
}

fn authority() -> Authority {
    Authority::found(&SigningKey::from_seed([1; 32]), [2; 32], WALL_MS).expect("the date can be written")
}

const NEXT_SEED: [u8; 32] = [4; 32];

/// What the root says of the key that follows.
fn certified() -> CertifiedIssuer {
    let key = SigningKey::from_seed(NEXT_SEED).verifying_key();
    let certified = certify_issuer(&SigningKey::from_seed([1; 32]), authority().root(), &key, 2, WALL_MS);
    certified.expect("the date can be written")
}

/// What nodes and people bring along: it is refused, or written back the same, and gives nobody a name.
pub(crate) fn documents(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(data);
    match kind % 7 {
        0 => {
            if let Ok(message) = JoinMessage::decode(data) {
                assert_eq!(JoinMessage::decode(&message.encode()).ok(), Some(message));
            }
        }
        1 => {
            if let Ok(token) = text.parse::<JoinToken>() {
                assert_eq!(token.reveal(), text.trim());
            }
        }
        2 => {
            if let Ok(token) = text.parse::<ApiToken>() {
                assert_eq!(token.reveal(), text.trim());
            }
        }
        3 => {
            let cluster = SigningKey::from_seed([1; 32]).verifying_key().id();
            if let Ok(read) = Authority::decode(data, &cluster) {
                assert_eq!(read.cluster(), cluster);
                assert!(Authority::decode(&read.encode(), &cluster).is_ok());
            }
        }
        4 => {
            drop(peer_of(data));
            if let Ok(identity) = TlsIdentity::decode([1; 32], data) {
                assert!(TlsIdentity::decode([1; 32], &identity.encode()).is_ok());
            }
        }
        6 => {
            let issuing = from_pem(&text).unwrap_or_else(|_| data.to_vec());
            let (first, right) = (authority(), certified());
            let (cluster, root) = (first.cluster(), first.root().to_vec());
            let given = CertifiedIssuer { issuing, issuer: right.issuer.clone() };
            if let Ok(next) = Authority::next(&cluster, NEXT_SEED, root, given, WALL_MS) {
                assert_eq!((next.cluster(), next.certificate().serial), (cluster, 2));
                assert!(Authority::decode(&next.encode(), &cluster).is_ok());
            }
        }
        _ => {
            let (authority, node) = (authority(), Digest::of(b"node"));
            if let Ok(chain) = authority.issue_tls(data, &node, NodeRole::Worker, &[], 1, WALL_MS) {
                let peer = chain.first().map(|leaf| peer_of(leaf).expect("what is issued names a node"));
                let named = peer.map(|peer| (peer.cluster, peer.role, peer.node));
                assert_eq!(named, Some((authority.cluster(), NodeRole::Worker, node)));
            }
        }
    }
}

pub(crate) fn documents_corpus() -> Vec<Vec<u8>> {
    let (authority, key) = (authority(), SigningKey::from_seed([7; 32]));
    let request = certificate_request(&[3; 32]).expect("a request is written");
    let node = Digest::of(b"node");
    let chain = authority.issue_tls(&request, &node, NodeRole::Server, &["127.0.0.1".to_owned()], 1, WALL_MS);
    let chain = chain.expect("a request of our own is good");
    let hello = Hello {
        version: 1,
        token: Some([5; 32]),
        certificate_request: request.clone(),
        public_key: key.verifying_key().to_bytes(),
        role: NodeRole::Worker,
        name: "host".to_owned(),
        address: String::new(),
    };
    let messages = [
        JoinMessage::Hello(hello),
        JoinMessage::Challenge(Challenge { nonce: [1; 32], expires_ms: 60_000 }),
        JoinMessage::Evidence(software_evidence(&key, Digest::of(b"binary"), "1".to_owned(), &[9; 64])),
        JoinMessage::Evidence(Evidence::None),
        JoinMessage::Reject(Reject { code: RejectCode::NotLeader, detail: String::new(), leader: None }),
    ];
    let leaf = chain.first().cloned().unwrap_or_default();
    let identity = TlsIdentity::new([3; 32], chain, WALL_MS).encode();
    let made = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    let mut corpus: Vec<Vec<u8>> = messages.iter().map(|message| made(0, &message.encode())).collect();
    corpus.extend([
        made(1, JoinToken::new(authority.cluster(), [5; 32]).reveal().as_bytes()),
        made(2, ApiToken::new([6; 32]).reveal().as_bytes()),
        made(3, &authority.encode()),
        made(4, &leaf),
        made(4, &identity),
        made(5, &request),
        made(6, &certified().issuing),
        made(6, pem(&certified().issuing).as_bytes()),
    ]);
    corpus
}
