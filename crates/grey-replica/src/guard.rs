//! What the engine must not be told. It trusts what its peers say and ends by a panic where that contradicts its log; a peer
//! that is authenticated can still be wrong.
//!
//! Checked is what one message says against itself and against this server's log. That a peer lies consistently, a leader
//! about entries or a follower about what it made durable, no message shows: the engine tolerates crashes, not lies.

use std::collections::BTreeSet;

use grey_core::limits;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{RawNode, StateRole};

use crate::window::Window;

/// Terms and indexes stay below this, so that a proof can state them: 2^52.
pub(crate) const LARGEST_NUMBER: u64 = 1 << 52;
/// How far a message's term may lie ahead of this server's: with one election every tick, centuries.
const TERM_AHEAD: u64 = 1 << 32;
/// The most bytes that a heartbeat may carry for reads; this replica's are eight.
const CONTEXT_BYTES: usize = 16;
/// The most bytes of one message but for a whole state: entries up to the engine's own bound, or one that alone is larger.
const MESSAGE_BYTES: usize = 2 * 1024 * 1024 + limits::ENTRY_BYTES;
/// The most bytes of a message with a whole state.
pub(crate) const INSTALLATION_BYTES: usize = 1024 * 1024 * 1024;
/// The most servers of a kind in a membership.
const MEMBERS: usize = 64;

fn holds(holds: bool, wrong: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(wrong) }
}

/// Refuses a message that the engine could not take, with what is wrong with it.
pub(crate) fn check(message: &Message, engine: &RawNode<Window>) -> Result<(), &'static str> {
    let raft = &engine.raft;
    holds(message.to == raft.id, "it is for another server")?;
    holds(message.from != 0 && message.from != raft.id, "its sender is nobody, or this server itself")?;
    holds(message.term >= 1, "it has no term")?;
    let latest = LARGEST_NUMBER.min(raft.term.saturating_add(TERM_AHEAD));
    holds(message.term <= latest, "its term is impossibly far ahead")?;
    let numbers = [message.index, message.log_term, message.commit, message.commit_term, message.reject_hint];
    holds(numbers.iter().all(|number| *number <= LARGEST_NUMBER), "a number of it is impossible")?;
    holds(message.context.len() <= CONTEXT_BYTES, "its context is too long")?;
    holds(
        message.priority == 0 && message.deprecated_priority == 0,
        "it has a priority, which no server has",
    )?;
    holds(message.request_snapshot == 0, "it asks for a whole state, which no server does")?;
    let carries_state = message.msg_type == MessageType::MsgSnapshot;
    holds(
        carries_state == message.snapshot.is_some(),
        "it carries a whole state, or none, against its kind",
    )?;
    let size = message.entries.iter().map(|entry| entry.data.len()).fold(0usize, usize::saturating_add);
    holds(size <= MESSAGE_BYTES, "its entries are too large")?;
    if message.msg_type != MessageType::MsgAppend {
        holds(message.entries.is_empty(), "it carries entries and is no append")?;
    }
    match message.msg_type {
        MessageType::MsgAppend => append(message, engine),
        MessageType::MsgHeartbeat => {
            // What is of an earlier term the engine answers unread.
            holds(
                message.term < raft.term || message.commit <= raft.raft_log.last_index(),
                "it commits what is not there",
            )
        }
        MessageType::MsgAppendResponse | MessageType::MsgHeartbeatResponse => response(message, engine),
        MessageType::MsgRequestVote | MessageType::MsgRequestPreVote | MessageType::MsgTimeoutNow => Ok(()),
        MessageType::MsgSnapshot => installation(message),
        MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => {
            // Votes are asked for when the log is durable, so until then nobody answers.
            let is_candidate = matches!(raft.state, StateRole::PreCandidate | StateRole::Candidate);
            let asked = raft.raft_log.persisted == raft.raft_log.last_index();
            holds(asked || !is_candidate, "it answers what was not asked yet")
        }
        // Proposals, reads and wishes for a transfer of leadership are not passed on.
        _ => Err("no server sends such a message"),
    }
}

fn append(message: &Message, engine: &RawNode<Window>) -> Result<(), &'static str> {
    let (raft, log) = (&engine.raft, &engine.raft.raft_log);
    holds((message.index == 0) == (message.log_term == 0), "the entry before its entries has no term")?;
    holds(message.log_term <= message.term, "its entries follow one of a later term")?;
    let (mut index, mut term) = (message.index, message.log_term.max(1));
    for entry in &message.entries {
        index += 1;
        holds(entry.index == index, "its entries have a gap")?;
        holds(entry.term >= term && entry.term <= message.term, "its entries' terms go back")?;
        term = entry.term;
        kind(entry)?;
    }
    if message.term < raft.term || message.index < log.committed {
        return Ok(());
    }
    // A leader has everything that is committed. Without this the engine would look for where the logs part below it.
    let committed = log.term(log.committed).unwrap_or(0);
    holds(message.log_term >= committed, "its entries follow one that contradicts what is committed")
}

fn kind(entry: &Entry) -> Result<(), &'static str> {
    holds(entry.entry_type != EntryType::EntryConfChange, "an entry is of a kind that no server writes")?;
    holds(entry.context.is_empty(), "an entry has a context")?;
    holds(entry.data.len() <= limits::ENTRY_BYTES, "an entry is too large")
}

fn response(message: &Message, engine: &RawNode<Window>) -> Result<(), &'static str> {
    let raft = &engine.raft;
    if raft.state != StateRole::Leader || message.term != raft.term {
        return Ok(());
    }
    let last = raft.raft_log.last_index();
    let within = message.index <= last && message.commit <= last;
    holds(within, "it has more entries than this leader")?;
    holds(
        !message.reject || message.reject_hint <= message.index,
        "it asks for what lies behind what it refused",
    )
}

fn installation(message: &Message) -> Result<(), &'static str> {
    let metadata = message.get_snapshot().get_metadata();
    let numbers = 1..=LARGEST_NUMBER;
    holds(
        numbers.contains(&metadata.index)
            && numbers.contains(&metadata.term)
            && metadata.term <= message.term,
        "its whole state is of an impossible index or term",
    )?;
    let members = metadata.get_conf_state();
    let (voters, outgoing) = (&members.voters, &members.voters_outgoing);
    let (learners, next) = (&members.learners, &members.learners_next);
    for list in [voters, outgoing, learners, next] {
        let distinct: BTreeSet<u64> = list.iter().copied().collect();
        let right = distinct.len() == list.len() && list.len() <= MEMBERS && !distinct.contains(&0);
        holds(right, "its membership names a server twice, none, or too many")?;
    }
    holds(!voters.is_empty(), "its membership has no voter")?;
    let votes = |id: &u64| voters.contains(id) || outgoing.contains(id);
    holds(!learners.iter().any(votes), "its membership has a learner that votes")?;
    let leaving = next.iter().all(|id| outgoing.contains(id) && !learners.contains(id));
    holds(leaving, "its membership has a server that becomes a learner and did not vote")?;
    holds(!outgoing.is_empty() || !members.auto_leave, "its membership leaves what it is not in")
}
