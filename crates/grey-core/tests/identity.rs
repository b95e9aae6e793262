//! Who belongs to the cluster and who may speak: rules over the commands that change it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;

use grey_core::{
    AdmitNode, Answer, AttemptId, Command, CordonNode, CreateJoinToken, CreateTenant, CreateToken,
    EnrolFounder, Entry, Epoch, ForgetNode, JoinTokenRow, Keeper, LoadError, LoseWorker, NewNode, NodeRole,
    NodeRow, NodeStanding, NodeVersion, Outcome, PLAN_VERSION, Phase, Placement, Plan, Presence,
    RaiseFeatureLevel, Recover, Rejection, RenewNode, RevokeJoinToken, RevokeToken, Revoked, SetNodeAddress,
    SetNodeStanding, SetNodeVersion, SetTenantSuspended, State, TaskId, TaskRange, TenantId, Tier, TokenRole,
    TokenRow, WorkerId, limits, plan, steal,
};
use grey_proof::Digest;
use serde::Serialize;
use serde::de::DeserializeOwned;
use support::{
    TENANT, announcement, announcement_in, applied, finished, founded, new_node, phase, report, spec, submit,
};

const NOW: u64 = 1_000_000;

fn token(seed: u8, role: TokenRole) -> TokenRow {
    TokenRow {
        id: Digest::of(&[seed, 3]),
        name: "somebody".to_owned(),
        role,
        tenant: role.is_of_tenant().then_some(TENANT),
        expires_wall_ms: NOW + 1_000,
        created_wall_ms: NOW,
        created_by: "the founder".to_owned(),
    }
}

fn enrolled() -> State {
    let (mut state, _) = founded();
    let body = EnrolFounder {
        node: new_node(1, NodeRole::Server),
        token: token(1, TokenRole::Operator),
        wall_ms: NOW,
    };
    let answer = applied(&mut state, Command::EnrolFounder(body.clone())).answer;
    assert_eq!(answer, Ok(Answer::Admitted { server: Some(1) }));
    let again = applied(&mut state, Command::EnrolFounder(body)).answer;
    assert!(matches!(again, Err(Rejection::NotAdmitted(_))), "{again:?}");
    state
}

fn join_token(state: &mut State, seed: u8, role: NodeRole) -> Digest {
    let id = Digest::of(&[seed, 4]);
    let token = JoinTokenRow { id, role, expires_wall_ms: NOW + 1_000, created_wall_ms: NOW };
    applied(state, Command::CreateJoinToken(CreateJoinToken { token })).answer.unwrap();
    id
}

fn admit(token: Digest, nonce: u8, node: NewNode, wall_ms: u64) -> Command {
    Command::AdmitNode(AdmitNode { token, nonce: [nonce; 32], node, wall_ms })
}

/// Whatever was done, the rows alone make the same state again.
fn assert_rows_are_all(state: &State) {
    let rows = state.all_rows();
    let loaded = State::load(rows.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))).unwrap();
    assert!(loaded == *state);
    assert_eq!(loaded.nodes().count(), state.nodes().count());
    for row in state.nodes() {
        assert_eq!(loaded.node_of_key(&row.tls_key), Some(row));
        assert_eq!(row.server.and_then(|number| loaded.node_of_server(number)), row.server.map(|_| row));
    }
}

#[test]
fn a_token_lets_one_node_in_once_and_a_server_gets_the_next_number() {
    let mut state = enrolled();
    let first = join_token(&mut state, 1, NodeRole::Server);
    let second = join_token(&mut state, 2, NodeRole::Worker);
    let answer = applied(&mut state, admit(first, 1, new_node(2, NodeRole::Server), NOW)).answer;
    assert_eq!(answer, Ok(Answer::Admitted { server: Some(2) }));
    let answer = applied(&mut state, admit(second, 2, new_node(3, NodeRole::Worker), NOW)).answer;
    assert_eq!(answer, Ok(Answer::Admitted { server: None }));
    assert_eq!(state.join_tokens().count(), 0);
    assert_eq!(state.node_of_server(2).unwrap().name, "host-2");
    assert!(state.certificate(&Digest::of(&[3, 2])).is_some());
    assert_rows_are_all(&state);
    // A number is never given again.
    let node = Digest::of(&[2; 32]);
    applied(&mut state, Command::SetNodeStanding(SetNodeStanding { node, standing: NodeStanding::Leaving }))
        .answer
        .unwrap();
    applied(&mut state, Command::ForgetNode(ForgetNode { node })).answer.unwrap();
    assert_eq!(state.node_of_server(2), None);
    assert!(state.certificate(&Digest::of(&[2, 2])).is_some(), "what it signed can still be proved");
    let third = join_token(&mut state, 3, NodeRole::Server);
    let answer = applied(&mut state, admit(third, 3, new_node(4, NodeRole::Server), NOW)).answer;
    assert_eq!(answer, Ok(Answer::Admitted { server: Some(3) }));
    assert_rows_are_all(&state);
}

#[test]
fn what_is_wrong_with_a_join_is_refused_and_uses_nothing_up() {
    let mut state = enrolled();
    let good = join_token(&mut state, 1, NodeRole::Worker);
    let spent = join_token(&mut state, 2, NodeRole::Worker);
    applied(&mut state, admit(spent, 7, new_node(9, NodeRole::Worker), NOW)).answer.unwrap();
    let worker = || new_node(2, NodeRole::Worker);
    let refused: Vec<(&str, Command)> = vec![
        ("an unknown token", admit(Digest::of(b"no"), 1, worker(), NOW)),
        ("a used token", admit(spent, 1, worker(), NOW)),
        ("another role", admit(good, 1, new_node(2, NodeRole::Server), NOW)),
        ("a used nonce", admit(good, 7, worker(), NOW)),
        ("the key of a node that is in", admit(good, 1, new_node(9, NodeRole::Worker), NOW)),
        ("the TLS key of another", admit(good, 1, NewNode { tls_key: Digest::of(&[9, 1]), ..worker() }, NOW)),
        ("a serial of another", admit(good, 1, NewNode { serial: 9, ..worker() }, NOW)),
        ("a node that is not its key's", admit(good, 1, NewNode { node: Digest::of(b"x"), ..worker() }, NOW)),
        ("nothing known of it", admit(good, 1, NewNode { tier: Tier::None, ..worker() }, NOW)),
        ("a worker with an address", admit(good, 1, NewNode { address: "h:1".to_owned(), ..worker() }, NOW)),
        ("no name", admit(good, 1, NewNode { name: String::new(), ..worker() }, NOW)),
        ("an endless certificate", {
            let certificate = (Digest::of(b"c"), vec![0; limits::CERTIFICATE_BYTES + 1]);
            admit(good, 1, NewNode { certificate, ..worker() }, NOW)
        }),
    ];
    for (what, command) in refused {
        let hash = (state.nodes().count(), state.join_tokens().count());
        assert!(applied(&mut state, command).answer.is_err(), "{what}");
        assert_eq!(hash, (state.nodes().count(), state.join_tokens().count()), "{what}");
    }
    applied(&mut state, admit(good, 1, worker(), NOW)).answer.unwrap();
    let late = join_token(&mut state, 5, NodeRole::Worker);
    let answer = applied(&mut state, admit(late, 3, new_node(5, NodeRole::Worker), NOW + 1_001)).answer;
    assert!(matches!(answer, Err(Rejection::NotAdmitted(_))), "{answer:?}");
}

#[test]
fn nobody_joins_a_cluster_of_one_process() {
    let (mut state, _) = founded();
    let token = join_token(&mut state, 1, NodeRole::Worker);
    let answer = applied(&mut state, admit(token, 1, new_node(2, NodeRole::Worker), NOW)).answer;
    assert!(matches!(answer, Err(Rejection::NotAdmitted(_))), "{answer:?}");
}

#[test]
fn a_server_needs_an_address_that_can_be_dialled() {
    let mut state = enrolled();
    let token = join_token(&mut state, 1, NodeRole::Server);
    let long = format!("{}:1", "h".repeat(limits::ADDRESS_BYTES));
    for address in ["", "host", "host:", ":7654", "host:0", "host:99999", "ho st:1", "h\u{e4}st:1", &long] {
        let node = NewNode { address: address.to_owned(), ..new_node(2, NodeRole::Server) };
        assert!(applied(&mut state, admit(token, 1, node, NOW)).answer.is_err(), "{address}");
    }
    let node = Digest::of(&[1; 32]);
    let moved = SetNodeAddress { node, address: "[::1]:9".to_owned() };
    applied(&mut state, Command::SetNodeAddress(moved)).answer.unwrap();
    assert_eq!(state.node(&node).unwrap().address, "[::1]:9");
}

#[test]
fn a_renewal_keeps_the_last_certificates_and_is_not_for_the_blocked() {
    let mut state = enrolled();
    let node = Digest::of(&[1; 32]);
    let renew = |number: u8| RenewNode {
        node,
        nonce: [number; 32],
        tls_key: Digest::of(&[number, 1]),
        tier: Tier::Software,
        evidence: Digest::of(b"evidence"),
        serial: u64::from(number),
        certificate: Some((Digest::of(&[number, 2]), vec![1])),
        wall_ms: NOW,
    };
    for number in 100..110 {
        applied(&mut state, Command::RenewNode(renew(number))).answer.unwrap();
    }
    let row = state.node(&node).unwrap();
    assert_eq!(row.certificates.len(), limits::NODE_CERTIFICATES);
    assert_eq!(row.certificates.last(), Some(&Digest::of(&[109, 2])));
    assert!(state.certificate(&Digest::of(&[1, 2])).is_none());
    assert_eq!(state.node_of_key(&Digest::of(&[109, 1])).map(|row| row.node), Some(node));
    assert_eq!(state.node_of_key(&Digest::of(&[1, 1])), None);
    assert_rows_are_all(&state);
    let token = join_token(&mut state, 1, NodeRole::Server);
    applied(&mut state, admit(token, 1, new_node(2, NodeRole::Server), NOW)).answer.unwrap();
    let standing = NodeStanding::Blocked;
    applied(&mut state, Command::SetNodeStanding(SetNodeStanding { node, standing })).answer.unwrap();
    assert!(applied(&mut state, Command::RenewNode(renew(120))).answer.is_err());
    // Somebody must be left who can undo it.
    let node = Digest::of(&[2; 32]);
    assert!(
        applied(&mut state, Command::SetNodeStanding(SetNodeStanding { node, standing })).answer.is_err()
    );
}

#[test]
fn only_an_admitted_worker_registers_and_nothing_is_placed_on_a_blocked_one() {
    let mut state = enrolled();
    let token = join_token(&mut state, 1, NodeRole::Worker);
    let certificate = new_node(2, NodeRole::Worker).certificate.0;
    let node = Digest::of(&[2; 32]);
    let announced = |session: u64, certificate: Digest| {
        let Command::RegisterWorker(mut body) = support::announce(2, 1, session, 4, Vec::new()) else {
            panic!("an announcement is a registration")
        };
        (body.node, body.certificate) = (node, certificate);
        Command::RegisterWorker(body)
    };
    assert!(applied(&mut state, announced(1, certificate)).answer.is_err());
    applied(&mut state, admit(token, 1, new_node(2, NodeRole::Worker), NOW)).answer.unwrap();
    assert!(applied(&mut state, announced(1, Digest::of(b"another"))).answer.is_err());
    applied(&mut state, announced(1, certificate)).answer.unwrap();
    let tier = |state: &State| state.workers().values().next().unwrap().tier;
    assert_eq!(tier(&state), Tier::Software);
    let standing = |standing| Command::SetNodeStanding(SetNodeStanding { node, standing });
    applied(&mut state, standing(NodeStanding::Blocked)).answer.unwrap();
    assert_eq!(tier(&state), Tier::Blocked);
    assert!(applied(&mut state, announced(2, certificate)).answer.is_err());
    applied(&mut state, standing(NodeStanding::Admitted)).answer.unwrap();
    applied(&mut state, announced(2, certificate)).answer.unwrap();
    assert_eq!(tier(&state), Tier::Software);
}

#[test]
fn tokens_have_the_tenant_that_their_role_needs_and_are_forgotten_when_they_expire() {
    let mut state = enrolled();
    for (number, role) in (10..).zip(TokenRole::ALL) {
        applied(&mut state, Command::CreateToken(CreateToken { token: token(number, role) })).answer.unwrap();
        let tenant = (!role.is_of_tenant()).then_some(TENANT);
        let wrong = TokenRow { tenant, ..token(number + 50, role) };
        assert!(applied(&mut state, Command::CreateToken(CreateToken { token: wrong })).answer.is_err());
    }
    let unknown = TokenRow { tenant: Some(TenantId(99)), ..token(80, TokenRole::Viewer) };
    assert!(applied(&mut state, Command::CreateToken(CreateToken { token: unknown })).answer.is_err());
    let past = TokenRow { expires_wall_ms: NOW, ..token(81, TokenRole::Viewer) };
    assert!(applied(&mut state, Command::CreateToken(CreateToken { token: past })).answer.is_err());
    let again =
        applied(&mut state, Command::CreateToken(CreateToken { token: token(10, TokenRole::Viewer) }));
    assert!(again.answer.is_err());
    assert_eq!(state.tokens().count(), 6);
    let id = Digest::of(&[10, 3]);
    applied(&mut state, Command::RevokeToken(RevokeToken { id })).answer.unwrap();
    assert_eq!(
        applied(&mut state, Command::RevokeToken(RevokeToken { id })).answer,
        Err(Rejection::UnknownToken(id))
    );
    let left = join_token(&mut state, 1, NodeRole::Worker);
    applied(&mut state, Command::RevokeJoinToken(RevokeJoinToken { id: left })).answer.unwrap();
    let later = TokenRow {
        created_wall_ms: NOW + 5_000,
        expires_wall_ms: NOW + 6_000,
        ..token(90, TokenRole::Operator)
    };
    applied(&mut state, Command::CreateToken(CreateToken { token: later })).answer.unwrap();
    assert_eq!(state.tokens().count(), 1, "the others have expired by then");
    assert_rows_are_all(&state);
}

#[test]
fn a_suspended_tenant_submits_nothing_and_a_tenant_s_name_is_its_own() {
    let mut state = enrolled();
    let defaults = state.tenants().values().next().unwrap().defaults;
    let create = |name: &str, weight_milli: u32| {
        Command::CreateTenant(CreateTenant { name: name.to_owned(), defaults, weight_milli })
    };
    let answer = applied(&mut state, create("ada", 2_000)).answer;
    assert_eq!(answer, Ok(Answer::TenantCreated { tenant: TenantId(3) }));
    for (name, weight) in
        [("ada", 1_000), ("", 1_000), ("a\nb", 1_000), ("bob", 0), ("bob", limits::WEIGHT_MILLI + 1)]
    {
        assert!(applied(&mut state, create(name, weight)).answer.is_err(), "{name:?} {weight}");
    }
    let tenant = TenantId(3);
    let suspend = |suspended| Command::SetTenantSuspended(SetTenantSuspended { tenant, suspended });
    let submit = || {
        let mut body = support::submit(vec![(support::spec("t"), 1)]);
        body.tenant = tenant;
        Command::Submit(body)
    };
    applied(&mut state, suspend(true)).answer.unwrap();
    assert_eq!(applied(&mut state, submit()).answer, Err(Rejection::TenantSuspended(tenant)));
    applied(&mut state, suspend(false)).answer.unwrap();
    assert!(applied(&mut state, submit()).answer.is_ok());
    assert_rows_are_all(&state);
}

#[test]
fn nothing_is_placed_on_a_blocked_worker_whatever_tier_a_task_asks_for() {
    let mut state = enrolled();
    let token = join_token(&mut state, 1, NodeRole::Worker);
    applied(&mut state, admit(token, 1, new_node(2, NodeRole::Worker), NOW)).answer.unwrap();
    applied(&mut state, announcement(2)).answer.unwrap();
    let node = Digest::of(&[2; 32]);
    let stands = |standing| Command::SetNodeStanding(SetNodeStanding { node, standing });
    applied(&mut state, stands(NodeStanding::Blocked)).answer.unwrap();
    let mut spec = support::spec("t");
    spec.constraints.tier = Tier::Blocked;
    applied(&mut state, Command::Submit(support::submit(vec![(spec, 1)]))).answer.unwrap();
    assert!(plan(&state, 10).placements.is_empty());
    applied(&mut state, stands(NodeStanding::Admitted)).answer.unwrap();
    assert_eq!(plan(&state, 10).placements.len(), 1);
}

/// A cluster with two workers, of which the first is node 2.
fn with_two_workers() -> State {
    let mut state = enrolled();
    for node in 2..=3 {
        let token = join_token(&mut state, node, NodeRole::Worker);
        applied(&mut state, admit(token, node, new_node(node, NodeRole::Worker), NOW)).answer.unwrap();
        applied(&mut state, announcement(node)).answer.unwrap();
    }
    state
}

fn cordon(node: u8, cordoned: bool) -> Command {
    Command::CordonNode(CordonNode { node: Digest::of(&[node; 32]), cordoned })
}

#[test]
fn a_cordoned_worker_gets_nothing_new_also_after_it_announced_itself_again() {
    let mut state = with_two_workers();
    applied(&mut state, cordon(2, true)).answer.unwrap();
    assert_rows_are_all(&state);
    applied(&mut state, Command::Submit(submit(vec![(spec("t"), 20)]))).answer.unwrap();
    let placed_on = |state: &State| {
        let mut workers: Vec<u32> =
            plan(state, 100).placements.iter().map(|placement| placement.worker.0).collect();
        workers.dedup();
        workers
    };
    assert_eq!(placed_on(&state), [2]);
    // What a leader had planned before it knew is stale.
    let placements = vec![Placement {
        worker: WorkerId(1),
        tasks: TaskRange { first: TaskId(1), count: 1 },
        epoch: Epoch(1),
    }];
    let answer = applied(&mut state, Command::Plan(Plan { version: PLAN_VERSION, placements })).answer;
    assert_eq!(answer, Ok(Answer::Planned { placed: 0, stale: 1 }));
    applied(&mut state, announcement_in(2, 2)).answer.unwrap();
    assert_eq!(placed_on(&state), [2]);
    // To be kept out and let in again is another matter.
    for standing in [NodeStanding::Blocked, NodeStanding::Admitted] {
        let node = Digest::of(&[2; 32]);
        applied(&mut state, Command::SetNodeStanding(SetNodeStanding { node, standing })).answer.unwrap();
    }
    assert_eq!(placed_on(&state), [2]);
    applied(&mut state, cordon(2, false)).answer.unwrap();
    assert_eq!(placed_on(&state), [1, 2]);
    assert_rows_are_all(&state);
}

#[test]
fn a_cordoned_worker_gives_back_what_it_has_not_started_and_keeps_what_runs() {
    let mut state = with_two_workers();
    applied(&mut state, cordon(3, true)).answer.unwrap();
    applied(&mut state, Command::Submit(submit(vec![(spec("t"), 3)]))).answer.unwrap();
    let planned = plan(&state, 100);
    applied(&mut state, Command::Plan(planned)).answer.unwrap();
    let attempt = |task: u64| AttemptId { task: TaskId(task), epoch: Epoch(1) };
    let started = support::report(&state, WorkerId(1), vec![attempt(1)], Vec::new());
    applied(&mut state, Command::Report(started)).answer.unwrap();
    assert!(steal(&state, 10).is_empty(), "nobody else may have it");
    applied(&mut state, cordon(2, true)).answer.unwrap();
    // No other worker has room: they are to wait for one.
    let asked = steal(&state, 10);
    assert_eq!(asked, BTreeMap::from([(WorkerId(1), vec![attempt(3), attempt(2)])]));
    assert_eq!(steal(&state, 1)[&WorkerId(1)].len(), 1);
    let attempts = asked[&WorkerId(1)].clone();
    let given = Revoked { worker: WorkerId(1), incarnation: 1, attempts };
    assert_eq!(applied(&mut state, Command::Revoked(given)).answer, Ok(Answer::Revoked { revoked: 2 }));
    assert_eq!(state.workers()[&WorkerId(1)].held, 1);
    assert!(plan(&state, 10).placements.is_empty() && steal(&state, 10).is_empty());
    applied(&mut state, cordon(3, false)).answer.unwrap();
    assert_eq!(plan(&state, 10).placements[0].worker, WorkerId(2));
    assert_rows_are_all(&state);
}

#[test]
fn only_a_worker_is_cordoned_and_one_that_enters_anew_is_not() {
    let mut state = with_two_workers();
    for (node, refused) in [(1, "it is a server"), (9, "")] {
        let answer = applied(&mut state, cordon(node, true)).answer.unwrap_err();
        assert!(answer.to_string().contains(refused), "{answer}");
    }
    applied(&mut state, cordon(2, true)).answer.unwrap();
    let (node, standing) = (Digest::of(&[2; 32]), NodeStanding::Leaving);
    applied(&mut state, Command::SetNodeStanding(SetNodeStanding { node, standing })).answer.unwrap();
    applied(&mut state, Command::ForgetNode(ForgetNode { node })).answer.unwrap();
    assert_rows_are_all(&state);
    let token = join_token(&mut state, 4, NodeRole::Worker);
    applied(&mut state, admit(token, 4, new_node(2, NodeRole::Worker), NOW)).answer.unwrap();
    applied(&mut state, announcement_in(2, 2)).answer.unwrap();
    assert!(state.workers().values().all(|worker| !worker.cordoned));
    assert_rows_are_all(&state);
}

#[test]
fn a_worker_that_left_is_forgotten_with_its_node_when_it_holds_nothing_from_a_level_on() {
    // Given: a worker that is shut out and runs something, and an earlier level.
    let mut state = with_two_workers();
    applied(&mut state, cordon(3, true)).answer.unwrap();
    applied(&mut state, Command::Submit(submit(vec![(spec("t"), 1)]))).answer.unwrap();
    let planned = plan(&state, 10);
    applied(&mut state, Command::Plan(planned)).answer.unwrap();
    let (node, standing) = (Digest::of(&[2; 32]), NodeStanding::Leaving);
    applied(&mut state, Command::SetNodeStanding(SetNodeStanding { node, standing })).answer.unwrap();
    let mut earlier = state.clone();
    applied(&mut earlier, Command::ForgetNode(ForgetNode { node })).answer.unwrap();
    assert_eq!(earlier.workers().len(), 2, "its row stays, as it always did");
    // When the level is in force, then what it runs has to end first, here with its lease.
    for level in state.feature_level() + 1..=grey_core::FORGET_LEVEL {
        let newest = runs_newest(&state);
        applied(&mut state, newest).answer.unwrap();
        applied(&mut state, Command::RaiseFeatureLevel(RaiseFeatureLevel { level })).answer.unwrap();
    }
    let refused = applied(&mut state, Command::ForgetNode(ForgetNode { node })).answer.unwrap_err();
    assert!(refused.to_string().contains("attempts have not ended yet"), "{refused}");
    let (worker, row) = state.workers().iter().find(|(_, row)| row.node == node).unwrap();
    let lose = LoseWorker { worker: *worker, incarnation: row.incarnation, session: row.session };
    applied(&mut state, Command::LoseWorker(lose)).answer.unwrap();
    applied(&mut state, Command::ForgetNode(ForgetNode { node })).answer.unwrap();
    assert_eq!(state.workers().keys().copied().collect::<Vec<_>>(), [WorkerId(2)]);
    assert!(state.node(&node).is_none());
    assert!(state.certificate(&new_node(2, NodeRole::Worker).certificate.0).is_some(), "for its proofs");
    assert_rows_are_all(&state);
    // It enters anew as another one.
    let token = join_token(&mut state, 4, NodeRole::Worker);
    applied(&mut state, admit(token, 4, new_node(2, NodeRole::Worker), NOW)).answer.unwrap();
    applied(&mut state, announcement_in(2, 1)).answer.unwrap();
    assert_eq!(state.workers().keys().copied().collect::<Vec<_>>(), [WorkerId(2), WorkerId(3)]);
    assert_rows_are_all(&state);
}

#[test]
fn a_blocked_worker_s_reports_are_not_accepted_from_a_level_on_and_are_when_it_is_let_back_in() {
    // Given: a worker that runs something, of which it reports the end, and is blocked before that is applied.
    let mut state = with_two_workers();
    applied(&mut state, cordon(3, true)).answer.unwrap();
    applied(&mut state, Command::Submit(submit(vec![(spec("t"), 1)]))).answer.unwrap();
    let planned = plan(&state, 10);
    applied(&mut state, Command::Plan(planned)).answer.unwrap();
    let node = Digest::of(&[2; 32]);
    let worker = state.workers().iter().find(|(_, row)| row.node == node).map(|(id, _)| *id).unwrap();
    let attempt = AttemptId { task: TaskId(1), epoch: Epoch(1) };
    let tasks = TaskRange { first: TaskId(1), count: 1 };
    let ended = finished(tasks, Epoch(1), Outcome::Exited(0));
    let report = Command::Report(report(&state, worker, vec![attempt], vec![ended]));
    let stand = |standing| Command::SetNodeStanding(SetNodeStanding { node, standing });
    applied(&mut state, stand(NodeStanding::Blocked)).answer.unwrap();
    // Below the level it counts, as every server of an earlier version has it.
    let mut earlier = state.clone();
    applied(&mut earlier, report.clone()).answer.unwrap();
    assert!(earlier.jobs().is_empty(), "the job has ended");
    // From the level on it does not, and nothing else changes.
    for level in state.feature_level() + 1..=grey_core::ACCEPTANCE_LEVEL {
        let newest = runs_newest(&state);
        applied(&mut state, newest).answer.unwrap();
        applied(&mut state, Command::RaiseFeatureLevel(RaiseFeatureLevel { level })).answer.unwrap();
    }
    let refused = applied(&mut state, report.clone());
    assert!(refused.answer.unwrap_err().to_string().contains("the node is blocked"));
    assert_eq!(refused.effects, []);
    assert_eq!(phase(&state, 1), Some(Phase::Assigned { worker }));
    assert_rows_are_all(&state);
    // One that leaves, or is let back in, has its work counted.
    for standing in [NodeStanding::Leaving, NodeStanding::Admitted] {
        let mut state = state.clone();
        applied(&mut state, stand(standing)).answer.unwrap();
        applied(&mut state, report.clone()).answer.unwrap();
        assert!(state.jobs().is_empty(), "{standing:?}");
    }
}

/// The founder says that it understands everything.
fn runs_newest(state: &State) -> Command {
    let server = state.nodes().find(|row| row.role == NodeRole::Server).unwrap();
    Command::SetNodeVersion(SetNodeVersion { node: server.node, version: NodeVersion::newest("1") })
}

#[test]
fn a_certificate_is_one_node_s_alone() {
    let mut state = enrolled();
    let token = join_token(&mut state, 1, NodeRole::Worker);
    let taken = new_node(1, NodeRole::Server).certificate;
    let thief = NewNode { certificate: taken.clone(), ..new_node(2, NodeRole::Worker) };
    assert!(applied(&mut state, admit(token, 1, thief, NOW)).answer.is_err());
    applied(&mut state, admit(token, 1, new_node(2, NodeRole::Worker), NOW)).answer.unwrap();
    let renewal = RenewNode { certificate: Some(taken.clone()), ..renewal(2, 50) };
    assert!(applied(&mut state, Command::RenewNode(renewal)).answer.is_err());
    assert_eq!(state.certificate(&taken.0).map(|(node, _)| *node), Some(Digest::of(&[1; 32])));
    // A node that was forgotten comes back with its own.
    let node = Digest::of(&[2; 32]);
    let standing = NodeStanding::Leaving;
    applied(&mut state, Command::SetNodeStanding(SetNodeStanding { node, standing })).answer.unwrap();
    applied(&mut state, Command::ForgetNode(ForgetNode { node })).answer.unwrap();
    let token = join_token(&mut state, 2, NodeRole::Worker);
    applied(&mut state, admit(token, 2, new_node(2, NodeRole::Worker), NOW)).answer.unwrap();
    assert_rows_are_all(&state);
}

#[test]
fn a_worker_is_trusted_as_far_as_its_last_evidence_goes_and_a_blocked_one_not_at_all() {
    let mut state = enrolled();
    let token = join_token(&mut state, 1, NodeRole::Worker);
    let trusted = NewNode { tier: Tier::Hardware, ..new_node(2, NodeRole::Worker) };
    applied(&mut state, admit(token, 1, trusted, NOW)).answer.unwrap();
    applied(&mut state, announcement(2)).answer.unwrap();
    let tier = |state: &State| state.workers().values().next().unwrap().tier;
    assert_eq!(tier(&state), Tier::Hardware);
    let node = Digest::of(&[2; 32]);
    let stands = |standing| Command::SetNodeStanding(SetNodeStanding { node, standing });
    applied(&mut state, Command::RenewNode(renewal(2, 50))).answer.unwrap();
    assert_eq!(tier(&state), Tier::Software);
    applied(&mut state, stands(NodeStanding::Leaving)).answer.unwrap();
    applied(&mut state, Command::RenewNode(renewal(2, 51))).answer.unwrap();
    assert_eq!(tier(&state), Tier::Blocked);
}

fn renewal(node: u8, number: u8) -> RenewNode {
    RenewNode {
        node: Digest::of(&[node; 32]),
        nonce: [number; 32],
        tls_key: Digest::of(&[number, 1]),
        tier: Tier::Software,
        evidence: Digest::of(b"evidence"),
        serial: u64::from(number),
        certificate: None,
        wall_ms: NOW,
    }
}

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Changes the first row of a kind; the kind's number stands before the row.
fn changed<T: Serialize + DeserializeOwned>(rows: &mut Rows, kind: u8, change: impl FnOnce(&mut T)) {
    let value = rows.iter_mut().find(|(key, _)| key.starts_with(&[12, kind])).unwrap().1;
    let mut row: T = postcard::from_bytes(&value[1..]).unwrap();
    change(&mut row);
    value.truncate(1);
    value.extend(postcard::to_allocvec(&row).unwrap());
}

/// Puts the first row of a kind under another digest.
fn moved(rows: &mut Rows, kind: u8) {
    let key = rows.keys().find(|key| key.starts_with(&[12, kind])).unwrap().clone();
    let value = rows.remove(&key).unwrap();
    rows.insert([&[12, kind], &[7; 32][..]].concat(), value);
}

#[test]
fn rows_that_contradict_one_another_are_refused_with_what_is_wrong() {
    type Change = fn(&mut Rows);
    let cases: [(&str, Change); 12] = [
        ("under another key", |rows| moved(rows, 1)),
        ("under another key", |rows| moved(rows, 3)),
        ("under another key", |rows| moved(rows, 4)),
        ("under another key", |rows| {
            let nonce = rows.iter().find(|(key, _)| key.starts_with(&[12, 5])).unwrap().1.clone();
            *rows.iter_mut().find(|(key, _)| key.starts_with(&[12, 4])).unwrap().1 = nonce;
        }),
        ("not its key's", |rows| changed::<NodeRow>(rows, 1, |row| row.public_key = [9; 32])),
        ("never given", |rows| {
            changed::<NodeRow>(rows, 1, |row| row.server = row.server.map(|number| number + 90));
        }),
        ("never given", |rows| changed::<NodeRow>(rows, 1, |row| row.server = row.server.map(|_| 0))),
        ("a number that its role has not", |rows| {
            changed::<NodeRow>(rows, 1, |row| row.role = NodeRole::Worker)
        }),
        ("share a key or a number", |rows| {
            let mut keys = Vec::new();
            for (_, value) in rows.iter().filter(|(key, _)| key.starts_with(&[12, 1])) {
                keys.push(postcard::from_bytes::<NodeRow>(&value[1..]).unwrap().tls_key);
            }
            changed::<NodeRow>(rows, 1, |row| row.tls_key = keys[1]);
        }),
        ("is cordoned", |rows| changed::<NodeRow>(rows, 1, |row| row.cordoned = true)),
        ("certificate", |rows| moved(rows, 2)),
        ("of no tenant", |rows| {
            changed::<TokenRow>(rows, 4, |row| {
                (row.role, row.tenant) = (TokenRole::Viewer, Some(TenantId(77)))
            });
        }),
    ];
    let mut state = enrolled();
    let used = join_token(&mut state, 1, NodeRole::Server);
    applied(&mut state, admit(used, 1, new_node(2, NodeRole::Server), NOW)).answer.unwrap();
    join_token(&mut state, 2, NodeRole::Worker);
    let whole: Rows = state.all_rows().into_iter().collect();
    for (number, (wrong, change)) in cases.into_iter().enumerate() {
        let mut rows = whole.clone();
        change(&mut rows);
        match State::load(rows.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))) {
            Err(LoadError::Invariant(said)) if said.contains(wrong) => {}
            other => panic!("case {number}, {wrong}: {:?}", other.map(|state| state.hash())),
        }
    }
}

fn newcomer(seed: u8) -> Keeper {
    Keeper::Newcomer {
        node: Box::new(new_node(seed, NodeRole::Server)),
        token: token(seed, TokenRole::Operator),
        issuers: vec![(Digest::of(&[seed, 8]), vec![seed])],
    }
}

/// A cluster of servers 1 and 2 and a worker, which runs one of two tasks.
fn at_work() -> State {
    let mut state = enrolled();
    for (seed, role) in [(2, NodeRole::Server), (3, NodeRole::Worker)] {
        let token = join_token(&mut state, seed, role);
        applied(&mut state, admit(token, seed, new_node(seed, role), NOW)).answer.unwrap();
    }
    applied(&mut state, announcement(3)).answer.unwrap();
    applied(&mut state, Command::Submit(submit(vec![(spec("a"), 2)]))).answer.unwrap();
    let first = plan(&state, 10);
    applied(&mut state, Command::Plan(first)).answer.unwrap();
    assert!(state.live().values().any(|live| live.phase.worker().is_some()), "a task is held");
    state
}

#[test]
fn a_cluster_goes_on_with_a_survivor_and_gives_nothing_out_twice() {
    let mut state = at_work();
    let survivor = Digest::of(&[2; 32]);
    let before = state.live().clone();
    let command = Command::Recover(Recover { keeper: Keeper::Survivor(survivor), wall_ms: NOW });
    assert_eq!(applied(&mut state, command).answer, Ok(Answer::Admitted { server: Some(2) }));
    // All other nodes are gone, and what the worker held waits.
    assert_eq!(state.nodes().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["host-2"]);
    assert!(state.workers().values().all(|worker| worker.presence == Presence::Lost));
    assert!(state.live().values().all(|live| live.phase.worker().is_none()));
    assert!(applied(&mut state, announcement_in(3, 2)).answer.is_err(), "what it was told is not known");
    // It is a later attempt the next time, and what is submitted has numbers that the lost part cannot have used.
    let token = join_token(&mut state, 9, NodeRole::Worker);
    applied(&mut state, admit(token, 9, new_node(9, NodeRole::Worker), NOW)).answer.unwrap();
    applied(&mut state, announcement(9)).answer.unwrap();
    let again = plan(&state, 10);
    applied(&mut state, Command::Plan(again)).answer.unwrap();
    let held = state.live().iter().filter(|(_, live)| live.phase.worker().is_some());
    let held: Vec<_> = held.map(|(task, live)| (*task, live.epoch)).collect();
    assert_eq!(held.len(), 2);
    for (task, epoch) in held {
        assert!(before.get(&task).is_none_or(|before| before.epoch < epoch), "{task} is the same attempt");
    }
    let Ok(Answer::Submitted { job, tasks, .. }) =
        applied(&mut state, Command::Submit(submit(vec![(spec("b"), 1)]))).answer
    else {
        panic!("it is not taken")
    };
    assert_eq!((job.0, tasks.first.0), (limits::NUMBERS_SKIPPED + 2, limits::NUMBERS_SKIPPED + 3));
    assert_rows_are_all(&state);
}

#[test]
fn a_cluster_goes_on_from_an_earlier_state_with_a_newcomer_and_none_of_the_nodes_of_before() {
    let mut state = at_work();
    let command = Command::Recover(Recover { keeper: newcomer(7), wall_ms: NOW });
    assert_eq!(applied(&mut state, command).answer, Ok(Answer::Admitted { server: Some(3) }));
    assert_eq!(state.nodes().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["host-7"]);
    assert!(state.tokens().any(|row| row.id == Digest::of(&[7, 3])));
    assert_eq!(state.issuers().collect::<Vec<_>>(), [[7]]);
    assert!(
        applied(&mut state, announcement_in(3, 2)).answer.is_err(),
        "a worker of before is none of this cluster"
    );
    assert!(state.certificate(&Digest::of(&[3, 2])).is_some(), "what it signed can still be proved");
    assert_rows_are_all(&state);
    // Nobody goes on who is no server, or is not known; and then nothing has changed.
    for keeper in [
        Keeper::Survivor(Digest::of(b"nobody")),
        Keeper::Newcomer {
            node: Box::new(new_node(9, NodeRole::Worker)),
            token: token(9, TokenRole::Operator),
            issuers: Vec::new(),
        },
        newcomer(7),
    ] {
        let whole = state.all_rows();
        let answer =
            applied(&mut state, Command::Recover(Recover { keeper: keeper.clone(), wall_ms: NOW })).answer;
        assert!(answer.is_err(), "{keeper:?}");
        let counted = |rows: Vec<(Vec<u8>, Vec<u8>)>| rows.len();
        assert_eq!(counted(whole), counted(state.all_rows()), "{keeper:?}");
    }
}

#[test]
fn the_bytes_of_every_command_are_published_and_do_not_change() {
    let node = Digest::of(&[2; 32]);
    let defaults = founded().0.tenants().values().next().unwrap().defaults;
    let id = Digest::of(b"id");
    let token = JoinTokenRow { id, role: NodeRole::Worker, expires_wall_ms: 300, created_wall_ms: 2 };
    let certificate = Some((id, vec![1, 2]));
    let commands = [
        Command::EnrolFounder(EnrolFounder {
            node: new_node(1, NodeRole::Server),
            token: self::token(1, TokenRole::Operator),
            wall_ms: NOW,
        }),
        admit(id, 5, new_node(2, NodeRole::Worker), NOW),
        Command::RenewNode(RenewNode { certificate, ..renewal(2, 9) }),
        Command::SetNodeStanding(SetNodeStanding { node, standing: NodeStanding::Blocked }),
        Command::SetNodeAddress(SetNodeAddress { node, address: "host:7654".to_owned() }),
        Command::ForgetNode(ForgetNode { node }),
        Command::CreateJoinToken(CreateJoinToken { token }),
        Command::RevokeJoinToken(RevokeJoinToken { id }),
        Command::CreateToken(CreateToken { token: self::token(2, TokenRole::Viewer) }),
        Command::RevokeToken(RevokeToken { id }),
        Command::CreateTenant(CreateTenant { name: "ada".to_owned(), defaults, weight_milli: 300 }),
        Command::SetTenantSuspended(SetTenantSuspended { tenant: TENANT, suspended: true }),
        Command::Recover(Recover { keeper: Keeper::Survivor(node), wall_ms: NOW }),
        Command::Recover(Recover { keeper: newcomer(3), wall_ms: NOW }),
        Command::CordonNode(CordonNode { node, cordoned: true }),
    ];
    let mut found = Vec::new();
    for command in commands {
        let entry = Entry { time_ms: 0x0102_0304, command };
        let bytes = entry.encode().unwrap();
        assert_eq!(Entry::decode(&bytes).unwrap(), entry);
        found.push(Digest::of(&bytes).to_string().chars().take(16).collect::<String>());
    }
    let published = [
        "aacbe7cb13e3f665",
        "4dd9474ce6962f60",
        "4a96c848c06af101",
        "d30a0b63082fd794",
        "15f37f0d788b500b",
        "87840a5be80fc1b4",
        "4bc28c2ccefbaead",
        "d6019a93d47759c5",
        "ef2becf14b8b07eb",
        "a1d23e88b5ece8c3",
        "5813ff30ca38ce47",
        "e3017314fea5db16",
        "44b178203687602e",
        "788ec7a170304736",
        "36f41e4c9f34976f",
    ];
    assert_eq!(found, published);
}
