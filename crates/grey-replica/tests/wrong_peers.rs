//! A server that is authenticated and wrong: what it says is refused, and the replica goes on as if nothing had been said.
//! Every case made the engine panic, or break its log, before such messages were refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use grey_core::NodeVersion;
use grey_replica::{
    LogEntry, LogReader, Membership, Options, Output, ReadError, Recovered, Replica, ReplicaError, TICK_MS,
};
use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot};

/// Nothing is read from here: what the tests write stays in the replica's own window.
struct NoReader;

impl LogReader for NoReader {
    fn entries(&self, low: u64, _: u64, _: u64) -> Result<Vec<LogEntry>, ReadError> {
        Err(ReadError::Missing(low))
    }

    fn term(&self, index: u64) -> Result<u64, ReadError> {
        Err(ReadError::Missing(index))
    }
}

fn server() -> Replica {
    let membership = Membership { voters: vec![1, 2, 3], ..Membership::default() };
    let options =
        Options { id: 1, seed: 1, checkpoint_bytes: u64::MAX, version: NodeVersion::newest("test") };
    let recovered = Recovered { membership, ..Recovered::default() };
    Replica::new(&options, recovered, Box::new(NoReader)).unwrap()
}

fn message(kind: MessageType, term: u64) -> Message {
    Message { msg_type: kind, to: 1, from: 2, term, ..Message::default() }
}

fn entry(index: u64, term: u64) -> Entry {
    Entry { index, term, ..Entry::default() }
}

fn said(replica: &mut Replica, message: &Message) -> Result<Vec<Output>, ReplicaError> {
    replica.receive(&message.write_to_bytes().unwrap())?;
    let outputs: Vec<Output> = replica.outputs().collect();
    let persisted = outputs.iter().filter_map(|output| match output {
        Output::Persist(batch) => Some(batch.number),
        _ => None,
    });
    if let Some(number) = persisted.max() {
        replica.persisted(number)?;
    }
    Ok(outputs)
}

/// A follower of server 2 in term 2 with six entries, of which four are committed.
fn follower() -> Replica {
    let mut replica = server();
    let mut append = message(MessageType::MsgAppend, 2);
    append.entries = (1..=6).map(|index| entry(index, 1 + index / 4)).collect::<Vec<_>>().into();
    append.commit = 4;
    said(&mut replica, &append).unwrap();
    assert_eq!(replica.commit_index(), 4);
    replica
}

/// The leader of its term, with one entry that nobody has acknowledged.
fn leader() -> Replica {
    let mut replica = server();
    for _ in 0..40 {
        replica.elapse(TICK_MS).unwrap();
        let numbers: Vec<u64> = replica
            .outputs()
            .filter_map(|output| match output {
                Output::Persist(batch) => Some(batch.number),
                _ => None,
            })
            .collect();
        numbers.into_iter().for_each(|number| replica.persisted(number).unwrap());
        let term = replica.term();
        if replica.leader() == 1 {
            break;
        }
        said(&mut replica, &message(MessageType::MsgRequestPreVoteResponse, term + 1)).unwrap();
        if replica.term() > 0 {
            let term = replica.term();
            said(&mut replica, &message(MessageType::MsgRequestVoteResponse, term)).unwrap();
        }
    }
    assert_eq!(replica.leader(), 1);
    replica
}

fn is_refused(mut replica: Replica, wrong: &Message, why: &str) {
    let before = (replica.term(), replica.commit_index(), replica.leader(), replica.state().hash());
    match said(&mut replica, wrong) {
        Err(ReplicaError::Refused { from, what }) => {
            assert_eq!(from, wrong.from);
            assert!(what.contains(why), "{what}, not {why}: {wrong:?}");
        }
        other => panic!("{why}: {other:?} of {wrong:?}"),
    }
    assert_eq!(before, (replica.term(), replica.commit_index(), replica.leader(), replica.state().hash()));
    replica.elapse(TICK_MS).unwrap();
}

#[test]
fn what_no_server_sends_is_refused() {
    let of = |kind| message(kind, 2);
    let cases: [(Message, &str); 12] = [
        (of(MessageType::MsgPropose), "no server sends"),
        (of(MessageType::MsgReadIndex), "no server sends"),
        (of(MessageType::MsgReadIndexResp), "no server sends"),
        (of(MessageType::MsgTransferLeader), "no server sends"),
        (of(MessageType::MsgSnapshot), "against its kind"),
        (of(MessageType::MsgHup), "no server sends"),
        (Message { from: 1, ..of(MessageType::MsgHeartbeat) }, "its sender"),
        (Message { from: 0, ..of(MessageType::MsgHeartbeat) }, "its sender"),
        (Message { to: 3, ..of(MessageType::MsgHeartbeat) }, "another server"),
        (Message { priority: -1, ..of(MessageType::MsgRequestVote) }, "priority"),
        (Message { context: vec![0; 17].into(), ..of(MessageType::MsgHeartbeat) }, "context"),
        (Message { request_snapshot: 1, ..of(MessageType::MsgAppendResponse) }, "asks for a whole state"),
    ];
    for (wrong, why) in cases {
        is_refused(follower(), &wrong, why);
        is_refused(server(), &wrong, why);
    }
}

#[test]
fn a_term_that_no_election_can_have_come_to_is_refused_and_the_next_one_is_taken() {
    for term in [0, 3 + (1 << 32), 1 << 53, u64::MAX] {
        is_refused(follower(), &message(MessageType::MsgHeartbeat, term), "term");
    }
    let mut replica = follower();
    said(&mut replica, &message(MessageType::MsgHeartbeat, 3)).unwrap();
    assert_eq!((replica.term(), replica.leader()), (3, 2));
}

#[test]
fn a_heartbeat_commits_no_more_than_there_is() {
    let commits = |commit| Message { commit, ..message(MessageType::MsgHeartbeat, 2) };
    is_refused(follower(), &commits(7), "commits what is not there");
    let mut replica = follower();
    said(&mut replica, &commits(6)).unwrap();
    assert_eq!(replica.commit_index(), 6);
    // One of an earlier term is answered unread: its sender learns of the present term.
    said(&mut replica, &Message { term: 1, ..commits(9) }).unwrap();
}

#[test]
fn entries_that_contradict_themselves_or_what_is_committed_are_refused() {
    let append = |index, log_term, entries: Vec<Entry>| Message {
        index,
        log_term,
        entries: entries.into(),
        ..message(MessageType::MsgAppend, 2)
    };
    let odd_kind = Entry { entry_type: EntryType::EntryConfChange, ..entry(7, 2) };
    let odd_context = Entry { context: b"x".as_slice().into(), ..entry(7, 2) };
    for (wrong, why) in [
        // Past the end of its log the engine takes term 0 for a match.
        (append(100, 0, vec![entry(101, 2)]), "has no term"),
        (append(6, 2, vec![entry(8, 2)]), "gap"),
        (append(6, 2, vec![entry(3, 2)]), "gap"),
        (append(6, 2, vec![entry(7, 2), entry(8, 1)]), "go back"),
        (append(6, 2, vec![entry(7, 9)]), "go back"),
        (append(6, 3, vec![]), "a later term"),
        (append(4, 1, vec![entry(5, 2)]), "contradicts what is committed"),
        (append(6, 2, vec![odd_kind]), "kind"),
        (append(6, 2, vec![odd_context]), "context"),
        (append(u64::MAX, 2, vec![]), "impossible"),
        (Message { entries: vec![entry(7, 2)].into(), ..message(MessageType::MsgHeartbeat, 2) }, "no append"),
    ] {
        is_refused(follower(), &wrong, why);
    }
    // One that follows what it has is taken, also where its own tail is another.
    let mut replica = follower();
    said(&mut replica, &Message { term: 3, ..append(5, 2, vec![entry(6, 3), entry(7, 3)]) }).unwrap();
    said(&mut replica, &Message { commit: 7, ..message(MessageType::MsgHeartbeat, 3) }).unwrap();
    assert_eq!(replica.commit_index(), 7);
}

#[test]
fn an_answer_speaks_of_no_more_than_the_leader_has() {
    let term = leader().term();
    let answer = |index, reject, reject_hint| Message {
        index,
        reject,
        reject_hint,
        ..message(MessageType::MsgAppendResponse, term)
    };
    is_refused(leader(), &answer(2, false, 0), "more entries than this leader");
    is_refused(leader(), &answer(1, true, 2), "behind what it refused");
    is_refused(
        leader(),
        &Message { commit: 2, ..message(MessageType::MsgHeartbeatResponse, term) },
        "more entries",
    );
    let mut replica = leader();
    said(&mut replica, &answer(1, false, 0)).unwrap();
    assert_eq!(replica.commit_index(), 1);
}

#[test]
fn votes_that_come_before_the_log_is_durable_were_never_asked_for() {
    // Given entries that are not durable yet, and an election that begins meanwhile.
    let mut replica = server();
    let mut append = message(MessageType::MsgAppend, 1);
    append.entries = vec![entry(1, 1)].into();
    replica.receive(&append.write_to_bytes().unwrap()).unwrap();
    for _ in 0..20 {
        replica.elapse(TICK_MS).unwrap();
    }
    // When a vote is granted that nobody can know of.
    let granted = message(MessageType::MsgRequestPreVoteResponse, 2);
    let refused = replica.receive(&granted.write_to_bytes().unwrap());
    // Then it does not count.
    assert!(matches!(refused, Err(ReplicaError::Refused { .. })), "{refused:?}");
}

#[test]
fn more_bytes_than_any_message_has_are_not_even_read() {
    let refused = server().receive(&vec![0; 16 * 1024 * 1024]);
    assert!(matches!(refused, Err(ReplicaError::BadMessage)));
}

#[test]
fn a_whole_state_with_an_impossible_place_or_membership_is_refused() {
    let state = |index: u64, term: u64, members: ConfState| {
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (index, term);
        metadata.set_conf_state(members);
        Message { snapshot: Some(snapshot).into(), ..message(MessageType::MsgSnapshot, 2) }
    };
    let members = |voters: &[u64], outgoing: &[u64], learners: &[u64], next: &[u64]| ConfState {
        voters: voters.to_vec(),
        voters_outgoing: outgoing.to_vec(),
        learners: learners.to_vec(),
        learners_next: next.to_vec(),
        ..ConfState::default()
    };
    for (wrong, why) in [
        (state(0, 1, members(&[1, 2], &[], &[], &[])), "impossible index"),
        (state(9, 3, members(&[1, 2], &[], &[], &[])), "impossible index"),
        (state(9, 2, members(&[], &[], &[1], &[])), "no voter"),
        (state(9, 2, members(&[1, 1], &[], &[], &[])), "twice"),
        (state(9, 2, members(&[1, 0], &[], &[], &[])), "twice"),
        (state(9, 2, members(&[1, 2], &[], &[2], &[])), "learner that votes"),
        (state(9, 2, members(&[1, 2], &[], &[], &[3])), "becomes a learner"),
        (state(9, 2, ConfState { auto_leave: true, ..members(&[1, 2], &[], &[], &[]) }), "is not in"),
    ] {
        is_refused(follower(), &wrong, why);
    }
}
