//! What the cluster has agreed to write, and what came with the levels: tenants' quotas.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
mod support;

use std::collections::BTreeMap;

use grey_core::{
    AdmitNode, Answer, Command, CreateJoinToken, EnrolFounder, Entry, EntryError, ForgetNode, JoinTokenRow,
    LoadError, Meta, NEWEST_FEATURE_LEVEL, NodeRole, NodeStanding, NodeVersion, OLDEST_FEATURE_LEVEL,
    RaiseFeatureLevel, RateLimit, RateRefusal, Rejection, SetNodeStanding, SetNodeVersion, SetQuarantine,
    SetTenantQuota, State, TenantId, TokenRole, TokenRow, apply, level_of_entry, limits,
};
use grey_proof::Digest;
use support::{TENANT, applied, founded, founded_at_newest, new_node, spec, submit};

const NOW: u64 = 1_000_000;
const NEXT: u16 = OLDEST_FEATURE_LEVEL + 1;
const RATE: RateLimit = RateLimit { tasks_per_second: 10, burst: 20 };

/// A cluster with two servers.
fn two_servers() -> State {
    let (mut state, _) = founded();
    let token = TokenRow {
        id: Digest::of(b"operator"),
        name: "operator".to_owned(),
        role: TokenRole::Operator,
        tenant: None,
        expires_wall_ms: NOW + 1_000,
        created_wall_ms: NOW,
        created_by: String::new(),
    };
    let founder = EnrolFounder { node: new_node(1, NodeRole::Server), token, wall_ms: NOW };
    applied(&mut state, Command::EnrolFounder(founder)).answer.unwrap();
    let id = Digest::of(b"join");
    let token =
        JoinTokenRow { id, role: NodeRole::Server, expires_wall_ms: NOW + 1_000, created_wall_ms: NOW };
    applied(&mut state, Command::CreateJoinToken(CreateJoinToken { token })).answer.unwrap();
    let node = new_node(2, NodeRole::Server);
    let admit = AdmitNode { token: id, nonce: [1; 32], node, wall_ms: NOW };
    applied(&mut state, Command::AdmitNode(admit)).answer.unwrap();
    state
}

fn runs(seed: u8, understands: u16) -> Command {
    let version = NodeVersion { understands, name: format!("0.{understands}.0") };
    Command::SetNodeVersion(SetNodeVersion { node: Digest::of(&[seed; 32]), version })
}

fn raise(level: u16) -> Command {
    Command::RaiseFeatureLevel(RaiseFeatureLevel { level })
}

fn quota(queued_tasks: Option<Option<u64>>, rate: Option<Option<RateLimit>>) -> Command {
    Command::SetTenantQuota(SetTenantQuota { tenant: TENANT, weight_milli: None, queued_tasks, rate })
}

fn quarantine(quarantined: bool) -> Command {
    Command::SetQuarantine(SetQuarantine { node: Digest::of(&[1; 32]), quarantined })
}

/// A cluster of one process, at the newest level.
fn at_newest() -> State {
    founded_at_newest().0
}

fn submitted(state: &mut State, tasks: u32) -> Result<Answer, Rejection> {
    applied(state, Command::Submit(submit(vec![(spec("work"), tasks)]))).answer
}

fn loaded(rows: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<State, LoadError> {
    State::load(rows.iter().map(|(key, value)| (key.as_slice(), value.as_slice())))
}

#[test]
fn a_cluster_is_founded_at_the_oldest_level() {
    let (state, _) = founded();
    assert_eq!(state.feature_level(), OLDEST_FEATURE_LEVEL);
    assert_eq!(State::new().feature_level(), 0);
}

#[test]
fn the_next_level_comes_into_force_once_every_server_understands_it() {
    let mut state = two_servers();
    let refused = applied(&mut state, raise(NEXT)).answer.unwrap_err();
    assert!(refused.to_string().contains("upgrade or remove it first"), "{refused}");
    applied(&mut state, runs(1, NEXT)).answer.unwrap();
    let Err(Rejection::NotUnderstood { server, understands, .. }) = state.may_raise_to(NEXT) else {
        panic!()
    };
    assert_eq!((server.as_str(), understands), ("host-2", OLDEST_FEATURE_LEVEL), "it has not said so yet");
    applied(&mut state, runs(2, NEXT)).answer.unwrap();
    assert_eq!(state.understood_by_all(), NEXT);
    assert_eq!(applied(&mut state, raise(NEXT)).answer, Ok(Answer::Identity));
    assert_eq!(state.feature_level(), NEXT);
    // Once in force, it is for good.
    for level in [OLDEST_FEATURE_LEVEL, NEXT] {
        let again = applied(&mut state, raise(level)).answer;
        assert_eq!(again, Err(Rejection::FeatureLevel { needed: level, in_force: NEXT }));
    }
}

#[test]
fn a_server_that_is_blocked_or_forgotten_holds_no_level_up() {
    let mut state = two_servers();
    applied(&mut state, runs(1, NEXT)).answer.unwrap();
    let node = Digest::of(&[2; 32]);
    let blocked = Command::SetNodeStanding(SetNodeStanding { node, standing: NodeStanding::Blocked });
    applied(&mut state, blocked).answer.unwrap();
    assert_eq!(state.may_raise_to(NEXT), Ok(()));
    applied(&mut state, runs(2, OLDEST_FEATURE_LEVEL)).answer.unwrap();
    applied(&mut state, Command::ForgetNode(ForgetNode { node })).answer.unwrap();
    assert_eq!(state.version_of(&node), None);
    assert_eq!(applied(&mut state, runs(2, NEXT)).answer, Err(Rejection::UnknownNode(node)));
    state.check().unwrap();
}

#[test]
fn no_level_is_left_out() {
    let (state, _) = founded();
    let far = state.may_raise_to(NEXT + 1);
    assert_eq!(far, Err(Rejection::FeatureLevel { needed: NEXT + 1, in_force: OLDEST_FEATURE_LEVEL }));
}

#[test]
fn what_came_with_a_level_is_refused_below_it_and_changes_nothing() {
    let (mut state, _) = founded();
    let refused = applied(&mut state, quota(Some(Some(1)), None)).answer.unwrap_err();
    assert_eq!(refused, Rejection::FeatureLevel { needed: NEXT, in_force: OLDEST_FEATURE_LEVEL });
    assert!(refused.to_string().contains("grey cluster upgrade"), "{refused}");
    assert!(state.quota(TENANT).is_none());
}

#[test]
fn an_entry_says_which_level_it_needs_and_an_unknown_one_halts() {
    let level = |command: Command| level_of_entry(&Entry { time_ms: 1, command }.encode().unwrap());
    assert_eq!(level(Command::Tick), Some(OLDEST_FEATURE_LEVEL));
    assert_eq!(level(quota(None, None)), Some(4));
    assert_eq!(level(quarantine(true)), Some(6));
    assert_eq!(level(raise(NEXT)), Some(NEXT));
    assert_eq!(level_of_entry(&[]), None);
    let future = Entry { time_ms: 1, command: raise(NEWEST_FEATURE_LEVEL + 1) }.encode().unwrap();
    assert!(Entry::decode(&future).unwrap_err().must_halt());
    let (mut state, _) = founded();
    let index = state.applied_index() + 1;
    assert!(matches!(apply(&mut state, 1, index, &future), Err(EntryError::Unknown { .. })));
    // A level that is not the kind's own is nobody's entry.
    let mut mixed = Entry { time_ms: 1, command: Command::Tick }.encode().unwrap();
    mixed[0] = 4;
    assert!(matches!(Entry::decode(&mixed), Err(EntryError::Malformed { .. })));
}

#[test]
fn a_state_of_a_newer_level_is_named_as_such() {
    let state = at_newest();
    let mut rows: BTreeMap<Vec<u8>, Vec<u8>> = state.all_rows().into_iter().collect();
    assert!(loaded(&rows).unwrap() == state);
    let mut meta: Meta = postcard::from_bytes(&rows[&vec![1]]).unwrap();
    meta.feature_level = NEWEST_FEATURE_LEVEL + 1;
    rows.insert(vec![1], postcard::to_allocvec(&meta).unwrap());
    rows.insert(vec![200, 1], vec![1]);
    let error = loaded(&rows).err().unwrap();
    assert_eq!(error, LoadError::FeatureLevel { level: NEWEST_FEATURE_LEVEL + 1 });
}

#[test]
fn what_a_server_runs_is_bounded_and_only_a_server_s() {
    let mut state = two_servers();
    let version = NodeVersion { understands: NEXT, name: "x".repeat(limits::NAME_BYTES + 1) };
    let long = Command::SetNodeVersion(SetNodeVersion { node: Digest::of(&[1; 32]), version });
    assert!(matches!(applied(&mut state, long).answer, Err(Rejection::OutOfBounds { .. })));
    let stranger = runs(9, NEXT);
    assert!(matches!(applied(&mut state, stranger).answer, Err(Rejection::UnknownNode(_))));
    assert!(state.version_of(&Digest::of(&[1; 32])).is_none());
}

#[test]
fn a_tenant_s_queue_holds_no_more_than_its_quota() {
    let mut state = at_newest();
    applied(&mut state, quota(Some(Some(5)), None)).answer.unwrap();
    submitted(&mut state, 5).unwrap();
    let refused = submitted(&mut state, 1).unwrap_err();
    assert_eq!(refused, Rejection::QueueFull { what: "queued tasks".to_owned(), limit: 5 });
    // Lowered below what is there, nothing is lost and nothing more is taken.
    applied(&mut state, quota(Some(Some(0)), None)).answer.unwrap();
    assert!(submitted(&mut state, 1).is_err());
    assert_eq!(state.tenants()[&TENANT].queued_tasks, 5);
    applied(&mut state, quota(Some(None), None)).answer.unwrap();
    assert!(state.quota(TENANT).is_none(), "a quota that says nothing is not kept");
    submitted(&mut state, 1).unwrap();
    state.check().unwrap();
}

#[test]
fn a_tenant_s_rate_holds_by_cluster_time_and_a_refusal_charges_nothing() {
    let mut state = at_newest();
    applied(&mut state, quota(None, Some(Some(RATE)))).answer.unwrap();
    submitted(&mut state, 20).unwrap();
    let used = state.quota(TENANT).unwrap().used;
    for (tasks, refusal) in
        [(1, RateRefusal::TooSoon { retry_after_ms: 100 }), (21, RateRefusal::NeverFits { burst: 20 })]
    {
        let refused = submitted(&mut state, tasks).unwrap_err();
        assert_eq!(refused, Rejection::RateExceeded { limit: RATE, refusal });
        assert_eq!(state.quota(TENANT).unwrap().used, used);
    }
    let later = Entry { time_ms: state.meta().time_ms + 100, command: Command::Tick };
    let index = state.applied_index() + 1;
    apply(&mut state, 1, index, &later.encode().unwrap()).unwrap().answer.unwrap();
    submitted(&mut state, 1).unwrap();
    // Another rate counts what was used under the first one.
    let lower = RateLimit { tasks_per_second: 1, burst: 20 };
    applied(&mut state, quota(None, Some(Some(lower)))).answer.unwrap();
    assert!(matches!(submitted(&mut state, 1), Err(Rejection::RateExceeded { .. })));
}

#[test]
fn what_is_unset_in_a_change_of_quota_stays() {
    let mut state = at_newest();
    applied(&mut state, quota(Some(Some(7)), Some(Some(RATE)))).answer.unwrap();
    let weight = SetTenantQuota { tenant: TENANT, weight_milli: Some(2_500), queued_tasks: None, rate: None };
    applied(&mut state, Command::SetTenantQuota(weight)).answer.unwrap();
    assert_eq!(state.tenants()[&TENANT].weight_milli, 2_500);
    let kept = state.quota(TENANT).unwrap().quota;
    assert_eq!((kept.queued_tasks, kept.rate), (Some(7), Some(RATE)));
    applied(&mut state, quota(None, Some(None))).answer.unwrap();
    let kept = state.quota(TENANT).unwrap().quota;
    assert_eq!((kept.queued_tasks, kept.rate), (Some(7), None));
}

#[test]
fn a_quota_outside_its_bounds_is_refused() {
    let mut state = at_newest();
    let wrong = [
        quota(Some(Some(limits::TENANT_QUEUED_TASKS + 1)), None),
        quota(None, Some(Some(RateLimit { tasks_per_second: 0, burst: 1 }))),
        Command::SetTenantQuota(SetTenantQuota {
            tenant: TENANT,
            weight_milli: Some(0),
            queued_tasks: None,
            rate: None,
        }),
    ];
    for command in wrong {
        assert!(matches!(applied(&mut state, command).answer, Err(Rejection::OutOfBounds { .. })));
    }
    let unknown = SetTenantQuota { tenant: TenantId(99), weight_milli: None, queued_tasks: None, rate: None };
    let refused = applied(&mut state, Command::SetTenantQuota(unknown)).answer;
    assert_eq!(refused, Err(Rejection::UnknownTenant(TenantId(99))));
    assert!(state.quota(TENANT).is_none());
}

#[test]
fn the_bytes_of_levels_and_quotas_are_published_and_do_not_change() {
    let commands = [runs(1, 4), raise(4), quota(Some(Some(7)), Some(Some(RATE))), quarantine(true)];
    let found: Vec<String> = commands
        .into_iter()
        .map(|command| {
            let entry = Entry { time_ms: 0x0102_0304, command };
            let bytes = entry.encode().unwrap();
            assert_eq!(Entry::decode(&bytes).unwrap(), entry);
            bytes.iter().map(|byte| format!("{byte:02x}")).collect()
        })
        .collect();
    let published = [
        "03001b00040302010000000072cd6e8422c407fb6d098690f1130b7ded7ec2f7f5e1d30bd9d521f0153637930405302e342e30",
        "04001c00040302010000000004",
        "04001d000403020100000000020001010701010a14",
        "06001f00040302010000000072cd6e8422c407fb6d098690f1130b7ded7ec2f7f5e1d30bd9d521f01536379301",
    ];
    assert_eq!(found, published);
}
