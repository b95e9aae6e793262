//! Which issuing key is current, and what is kept of those before it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
mod support;

use std::collections::BTreeMap;

use grey_core::{
    AdmitNode, Answer, AuthorityRow, Command, CreateJoinToken, CurrentIssuer, EnrolFounder, Entry,
    ForgetNode, JoinTokenRow, Keeper, LoadError, Meta, NodeRole, NodeStanding, OLDEST_FEATURE_LEVEL,
    RaiseFeatureLevel, Recover, Rejection, SetIssuingAuthority, SetNodeStanding, State, TokenRole, TokenRow,
    limits,
};
use grey_proof::Digest;
use support::{applied, founded, new_node};

const NOW: u64 = 1_000_000;
const LEVEL: u16 = 4;

fn operator(seed: u8) -> TokenRow {
    TokenRow {
        id: Digest::of(&[seed, 3]),
        name: "operator".to_owned(),
        role: TokenRole::Operator,
        tenant: None,
        expires_wall_ms: NOW + 1_000,
        created_wall_ms: NOW,
        created_by: String::new(),
    }
}

/// Servers 1 and 2 and a worker, at the oldest level.
fn enrolled() -> State {
    let (mut state, _) = founded();
    let founder = EnrolFounder { node: new_node(1, NodeRole::Server), token: operator(1), wall_ms: NOW };
    applied(&mut state, Command::EnrolFounder(founder)).answer.unwrap();
    for (seed, role) in [(2, NodeRole::Server), (3, NodeRole::Worker)] {
        let id = Digest::of(&[seed, 4]);
        let token = JoinTokenRow { id, role, expires_wall_ms: NOW + 1_000, created_wall_ms: NOW };
        applied(&mut state, Command::CreateJoinToken(CreateJoinToken { token })).answer.unwrap();
        let admit = AdmitNode { token: id, nonce: [seed; 32], node: new_node(seed, role), wall_ms: NOW };
        applied(&mut state, Command::AdmitNode(admit)).answer.unwrap();
    }
    state
}

/// The same at the level that re-keying came with.
fn rekeyable() -> State {
    let mut state = enrolled();
    for seed in [1, 2] {
        let version = grey_core::NodeVersion { understands: LEVEL, name: "new".to_owned() };
        let node = Digest::of(&[seed; 32]);
        applied(&mut state, Command::SetNodeVersion(grey_core::SetNodeVersion { node, version }))
            .answer
            .unwrap();
    }
    applied(&mut state, Command::RaiseFeatureLevel(RaiseFeatureLevel { level: LEVEL })).answer.unwrap();
    state
}

fn issuer(number: u8) -> Digest {
    Digest::of(&[number, 9])
}

/// The key of this number follows the one before it.
fn next(number: u8) -> SetIssuingAuthority {
    SetIssuingAuthority {
        follows: (number > 2).then(|| issuer(number - 1)),
        previous: Some((issuer(number - 1), vec![number - 1])),
        issuer: (issuer(number), vec![number]),
        serial: number.into(),
        not_after_wall_ms: NOW + 90,
        wall_ms: NOW,
    }
}

fn set(state: &mut State, body: SetIssuingAuthority) -> Result<Answer, Rejection> {
    applied(state, Command::SetIssuingAuthority(body)).answer
}

fn standing(state: &mut State, seed: u8, standing: NodeStanding) {
    let node = Digest::of(&[seed; 32]);
    applied(state, Command::SetNodeStanding(SetNodeStanding { node, standing })).answer.unwrap();
}

fn servers_left(state: &State) -> u64 {
    state.issuing_authority().map_or(0, |row| row.servers_left)
}

fn load(rows: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<State, LoadError> {
    State::load(rows.iter().map(|(key, value)| (key.as_slice(), value.as_slice())))
}

#[test]
fn one_issuing_key_follows_another_and_the_certificates_of_all_are_kept() {
    let mut state = rekeyable();
    assert_eq!(state.issuing_authority(), None);
    assert_eq!(set(&mut state, next(2)), Ok(Answer::Identity));
    assert_eq!(set(&mut state, next(3)), Ok(Answer::Identity));
    let current =
        CurrentIssuer { issuer: issuer(3), serial: 3, not_after_wall_ms: NOW + 90, since_wall_ms: NOW };
    let row = AuthorityRow { current: Some(current), servers_left: 0 };
    assert_eq!(state.issuing_authority(), Some(&row));
    let mut kept: Vec<&[u8]> = state.issuers().collect();
    kept.sort_unstable();
    assert_eq!(kept, [[1], [2], [3]]);
    state.check().unwrap();
    let rows: BTreeMap<Vec<u8>, Vec<u8>> = state.all_rows().into_iter().collect();
    assert!(load(&rows).unwrap() == state);
}

#[test]
fn a_key_that_does_not_follow_the_current_one_is_refused_and_nothing_changes() {
    let mut state = rekeyable();
    set(&mut state, next(2)).unwrap();
    let before = state.all_rows();
    let right = next(3);
    let cases = [
        ("became current meanwhile", SetIssuingAuthority { follows: None, ..right.clone() }),
        ("became current meanwhile", SetIssuingAuthority { follows: Some(issuer(7)), ..right.clone() }),
        ("serial number is not higher", SetIssuingAuthority { serial: 2, ..right.clone() }),
        ("past, or too far away", SetIssuingAuthority { not_after_wall_ms: NOW, ..right.clone() }),
        (
            "past, or too far away",
            SetIssuingAuthority { not_after_wall_ms: NOW + limits::AUTHORITY_MS + 1, ..right.clone() },
        ),
        ("known already", SetIssuingAuthority { issuer: (issuer(1), vec![1]), ..right.clone() }),
        ("missing or too long", SetIssuingAuthority { issuer: (issuer(3), vec![]), ..right.clone() }),
        (
            "missing or too long",
            SetIssuingAuthority {
                previous: Some((issuer(8), vec![0; limits::CERTIFICATE_BYTES + 1])),
                ..right.clone()
            },
        ),
        (
            "another node's",
            SetIssuingAuthority { previous: Some((Digest::of(&[3, 2]), vec![3])), ..right.clone() },
        ),
    ];
    for (said, body) in cases {
        let refused = set(&mut state, body.clone()).unwrap_err().to_string();
        assert!(refused.contains(said), "{refused}: {body:?}");
        let rows = |rows: &[(Vec<u8>, Vec<u8>)]| -> Vec<(Vec<u8>, Vec<u8>)> {
            rows.iter().filter(|(key, _)| key[0] == 12).cloned().collect()
        };
        assert_eq!(rows(&state.all_rows()), rows(&before), "{said}");
    }
    set(&mut state, right).unwrap();
}

#[test]
fn re_keying_needs_its_feature_level_and_a_cluster_of_servers() {
    let mut state = enrolled();
    let refused = set(&mut state, next(2)).unwrap_err();
    assert_eq!(refused, Rejection::FeatureLevel { needed: LEVEL, in_force: OLDEST_FEATURE_LEVEL });
    standing(&mut state, 2, NodeStanding::Blocked);
    assert_eq!(state.issuing_authority(), None, "below its level there is no such row");
    let (mut alone, _) = founded();
    applied(&mut alone, Command::RaiseFeatureLevel(RaiseFeatureLevel { level: LEVEL })).answer.unwrap();
    assert!(set(&mut alone, next(2)).unwrap_err().to_string().contains("one process"));
}

#[test]
fn each_server_that_left_since_the_last_key_is_counted_once() {
    let mut state = rekeyable();
    standing(&mut state, 3, NodeStanding::Blocked);
    assert_eq!(servers_left(&state), 0, "a worker knows no issuing key");
    standing(&mut state, 2, NodeStanding::Leaving);
    standing(&mut state, 2, NodeStanding::Blocked);
    applied(&mut state, Command::ForgetNode(ForgetNode { node: Digest::of(&[2; 32]) })).answer.unwrap();
    assert_eq!(servers_left(&state), 1);
    state.check().unwrap();
    set(&mut state, next(2)).unwrap();
    assert_eq!(servers_left(&state), 0);
}

#[test]
fn whoever_goes_on_alone_keeps_the_key_that_the_lost_servers_knew_and_a_restored_cluster_has_its_own() {
    let mut state = rekeyable();
    set(&mut state, next(2)).unwrap();
    let mut recovered = state.clone();
    let keeper = Keeper::Survivor(Digest::of(&[2; 32]));
    applied(&mut recovered, Command::Recover(Recover { keeper, wall_ms: NOW })).answer.unwrap();
    let row = recovered.issuing_authority().unwrap();
    assert_eq!((row.current.as_ref().map(|current| current.issuer), row.servers_left), (Some(issuer(2)), 1));
    recovered.check().unwrap();
    let keeper = Keeper::Newcomer {
        node: Box::new(new_node(7, NodeRole::Server)),
        token: operator(7),
        issuers: vec![(issuer(2), vec![2])],
    };
    applied(&mut state, Command::Recover(Recover { keeper, wall_ms: NOW })).answer.unwrap();
    assert_eq!(state.issuing_authority(), None);
    assert_eq!(state.issuers().count(), 2, "proofs of before can still be put together");
    state.check().unwrap();
}

#[test]
fn rows_that_contradict_one_another_about_the_key_are_no_state() {
    let mut state = rekeyable();
    set(&mut state, next(2)).unwrap();
    let whole: BTreeMap<Vec<u8>, Vec<u8>> = state.all_rows().into_iter().collect();
    let mut without = whole.clone();
    without.remove(&[&[12, 2][..], &issuer(2).0].concat()).unwrap();
    let said = load(&without).err().unwrap().to_string();
    assert!(said.contains("certificate is not kept"), "{said}");
    let mut earlier = whole.clone();
    let mut meta: Meta = postcard::from_bytes(&earlier[&vec![1]]).unwrap();
    meta.feature_level = OLDEST_FEATURE_LEVEL;
    earlier.insert(vec![1], postcard::to_allocvec(&meta).unwrap());
    let said = load(&earlier).err().unwrap().to_string();
    assert!(said.contains("later feature level"), "{said}");
    let mut elsewhere = whole;
    let row = elsewhere.remove(&[&[12, 7][..], &[0; 32]].concat()).unwrap();
    elsewhere.insert([&[12, 7][..], &[1; 32]].concat(), row);
    assert!(matches!(load(&elsewhere), Err(LoadError::Row { .. })));
}

#[test]
fn the_bytes_of_the_entry_and_of_the_row_are_published_and_do_not_change() {
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let entry = Entry { time_ms: 0x0102_0304, command: Command::SetIssuingAuthority(next(3)) };
    let bytes = entry.encode().unwrap();
    assert_eq!(Entry::decode(&bytes).unwrap(), entry);
    let mut state = rekeyable();
    set(&mut state, next(2)).unwrap();
    standing(&mut state, 2, NodeStanding::Leaving);
    let rows: BTreeMap<Vec<u8>, Vec<u8>> = state.all_rows().into_iter().collect();
    let row = &rows[&[&[12, 7][..], &[0; 32]].concat()];
    let published = [
        "04001e000403020100000000014b2871da34670fde248604e0f18fd3e4f7e1e6dfddb85875ce4813a6612953bb014b2871da34670fde248604e0f18fd3e4f7e1e6dfddb85875ce4813a6612953bb0102f2a8f1265933826335a2594ce63db828015ebc33c574d301854014dc857a9ce90103039a853dc0843d",
        "06014b2871da34670fde248604e0f18fd3e4f7e1e6dfddb85875ce4813a6612953bb029a853dc0843d01",
    ];
    assert_eq!([hex(&bytes), hex(row)], published);
}
