//! Who runs the cluster of a storm in which servers are replaced: lets servers and workers in, takes servers out, and starts and ends
//! their processes as that comes about. The membership itself is the leader's affair.

use std::collections::BTreeSet;

use grey_core::{
    AdmitNode, Command, CreateJoinToken, EnrolFounder, JoinTokenRow, NewNode, NodeRole, NodeStanding,
    SetNodeStanding, State, Tier, TokenRole, TokenRow,
};
use grey_proof::Digest;
use grey_replica::Membership;

use crate::faults::Fault;
use crate::network::NodeIndex;
use crate::random::Stream;
use crate::server::Ended;
use crate::workload::WALL_MS;
use crate::world::{Event, Node, Process, World};

/// How long tokens are good, in milliseconds.
const GOOD_MS: u64 = 3_600_000;
/// How often it is looked what is to be done, in microseconds.
const LOOK_US: u64 = 100_000;
/// The most commands that are proposed at once.
const AT_ONCE: usize = 8;

/// Servers that may enter in the course of a storm.
pub const SPARES: usize = 3;

/// What is to be, and how far it has come about.
#[derive(Debug)]
pub struct Operator {
    /// Servers that are to belong to the cluster, by their places.
    belongs: BTreeSet<NodeIndex>,
    /// The place of the next server that enters. Its number is one more: numbers are given in order.
    next: NodeIndex,
    /// How many servers the cluster is formed of.
    formed_of: usize,
    /// Nodes that are started once they are let in.
    waiting: BTreeSet<NodeIndex>,
    /// Whether the membership is not yet what is to be.
    under_way: bool,
    looked_us: u64,
}

impl Operator {
    /// A worker that was forgotten is let in again; whether that is new.
    pub fn lets_in_again(&mut self, worker: NodeIndex) -> bool {
        self.waiting.insert(worker)
    }

    /// Whether a node has yet to be let in.
    pub fn is_waiting(&self, node: NodeIndex) -> bool {
        self.waiting.contains(&node)
    }
}

impl World {
    /// The first server begins alone, as every cluster does; the other nodes are let in.
    pub fn form_of(&mut self, servers: usize) {
        let entering = (1..servers).chain(self.servers..self.servers + self.workers);
        self.operator = Some(Operator {
            belongs: (0..servers).collect(),
            next: servers,
            formed_of: servers,
            waiting: entering.collect(),
            under_way: true,
            looked_us: 0,
        });
        self.founders = 1;
        let enter = self.nodes.iter_mut().take(self.servers + self.workers).skip(1);
        enter.for_each(|node| node.stays_down = true);
    }

    /// Servers that are to belong to the cluster.
    pub fn members(&self) -> Vec<NodeIndex> {
        match &self.operator {
            Some(operator) => operator.belongs.iter().copied().collect(),
            None => (0..self.servers).collect(),
        }
    }

    /// Whether the membership is not yet what is to be.
    pub fn is_changing(&self) -> bool {
        self.operator.as_ref().is_some_and(|operator| operator.under_way)
    }

    /// A server that lost its disk, or that loses it now, or a sound one leaves, and a new one enters in its place.
    pub fn replace(&mut self, chance: &mut Stream) {
        let members = self.members();
        let is = |index: &NodeIndex, what: fn(&Node) -> bool| self.nodes.get(*index).is_some_and(what);
        let lost: Vec<NodeIndex> =
            members.iter().copied().filter(|index| is(index, |node| node.lost)).collect();
        let at_risk = members.iter().any(|index| is(index, |node| node.at_risk));
        let victims = if lost.is_empty() { &members } else { &lost };
        let (victim, wipes) = (chance.pick(victims).copied(), chance.chance(500_000));
        let (Some(victim), false) = (victim, at_risk || self.is_changing()) else { return };
        let newcomer = self.operator.as_ref().map_or(self.servers, |operator| operator.next);
        if newcomer >= self.servers {
            return;
        }
        if lost.is_empty() && wipes && self.may_lose() {
            self.lose(victim);
        }
        let (leaving, entering) = (self.name(victim), self.name(newcomer));
        self.trace.fold(&[self.now_us, 21, victim as u64, newcomer as u64]);
        self.trace.say(self.now_us, || format!("{leaving} is to leave, {entering} to enter"));
        self.enters(newcomer);
        if let Some(operator) = &mut self.operator {
            operator.belongs.remove(&victim);
            operator.belongs.insert(newcomer);
            operator.waiting.insert(newcomer);
            (operator.next, operator.under_way) = (newcomer + 1, true);
        }
    }

    /// Takes the next steps, through the server that leads.
    pub fn operate(&mut self, index: NodeIndex) -> Result<(), Ended> {
        let now_us = self.now_us;
        let due = self.operator.as_ref().is_some_and(|operator| now_us >= operator.looked_us + LOOK_US);
        if !due || self.leader() != Some(index) {
            return Ok(());
        }
        let (Some(server), Some(operator)) = (self.nodes.get(index).and_then(Node::server), &self.operator)
        else {
            return Ok(());
        };
        let state = server.replica().state();
        let there = |node: &NodeIndex| state.node(&self.newcomer(*node).node).is_some();
        let entered: Vec<NodeIndex> = operator.waiting.iter().copied().filter(there).collect();
        let membership = server.replica().membership();
        let gone: Vec<NodeIndex> = (0..operator.next)
            .filter(|server| !operator.belongs.contains(server) && !there(server))
            .filter(|server| !takes_part(&membership, *server))
            .collect();
        let voters: Vec<u64> = operator.belongs.iter().map(|server| *server as u64 + 1).collect();
        // A server goes by the membership that it has applied: one that has not heard of the last change asks for the votes of the
        // majority of before, so until every one has, a loss could leave too few of either.
        let all_know = operator.belongs.iter().filter_map(|index| self.nodes.get(*index)).all(|node| {
            node.lost || node.server().is_some_and(|server| is_of(&server.replica().membership(), &voters))
        });
        let settled = is_of(&membership, &voters)
            && all_know
            && state.nodes().filter(|row| row.role == NodeRole::Server).count() == voters.len();
        let commands = self.commands(state, operator);
        self.let_start_and_end(&entered, &gone);
        if let Some(operator) = &mut self.operator {
            operator.looked_us = now_us;
            operator.waiting.retain(|node| !entered.contains(node));
            if settled && std::mem::take(&mut operator.under_way) && operator.next > operator.formed_of {
                self.counters.count(Fault::Replace);
            }
        }
        match self.nodes.get_mut(index).map(|node| &mut node.process) {
            Some(Process::Server(server)) if !commands.is_empty() => server.propose(commands),
            _ => Ok(()),
        }
    }

    fn let_start_and_end(&mut self, entered: &[NodeIndex], gone: &[NodeIndex]) {
        for index in entered {
            if let Some(node) = self.nodes.get_mut(*index) {
                node.stays_down = false;
                self.queue.push(self.now_us, Event::Start { node: *index });
            }
        }
        for index in gone {
            self.kill(*index);
            self.nodes.get_mut(*index).into_iter().for_each(|node| node.stays_down = true);
        }
    }

    /// What is to be proposed, some of it at once. What comes to nothing is proposed again.
    fn commands(&self, state: &State, operator: &Operator) -> Vec<Command> {
        if state.meta().cluster.is_none() {
            return Vec::new();
        }
        if state.nodes().next().is_none() {
            return vec![self.enrolment()];
        }
        let (mut commands, numbered) = (Vec::new(), state.meta().servers_numbered);
        for server in 0..operator.next {
            let row = state.node(&self.newcomer(server).node);
            let admitted = row.is_some_and(|row| row.standing == NodeStanding::Admitted);
            if admitted && !operator.belongs.contains(&server) {
                commands.push(self.standing(server, NodeStanding::Leaving));
            }
        }
        let next = usize::try_from(numbered).ok().filter(|place| operator.waiting.contains(place));
        let workers = operator.waiting.range(self.servers..).copied();
        for node in next.into_iter().chain(workers) {
            let (create, admit) = self.admission(node);
            let Command::AdmitNode(body) = &admit else { continue };
            if state.node(&body.node.node).is_none() {
                let has_token = state.join_tokens().any(|token| token.id == body.token);
                commands.push(if has_token { admit } else { create });
            }
        }
        commands.truncate(AT_ONCE);
        commands
    }

    /// What a server or a worker brings along when it enters. A server's keys are no more than names here: nothing is encrypted.
    fn newcomer(&self, index: NodeIndex) -> NewNode {
        let name = self.name(index);
        let worker = index.checked_sub(self.servers).and_then(|number| self.identities.get(number));
        let public_key = match worker {
            Some(identity) => identity.verifying_key.to_bytes(),
            None => Digest::of(name.as_bytes()).0,
        };
        let node = Digest::of(&public_key);
        let (role, address) = match worker {
            Some(_) => (NodeRole::Worker, String::new()),
            None => (NodeRole::Server, format!("{name}:7654")),
        };
        NewNode {
            node,
            public_key,
            tls_key: Digest::of(format!("the TLS key of {name}").as_bytes()),
            name,
            role,
            address,
            tier: Tier::Software,
            evidence: Digest::ZERO,
            serial: index as u64 + 1,
            // The one that a worker names in its statements.
            certificate: (Digest::of(&node.0), vec![1]),
        }
    }

    /// The command with which the first server takes its place among the nodes.
    pub fn enrolment(&self) -> Command {
        let token = TokenRow {
            id: Digest::of(b"the operator's token"),
            name: "operator".to_owned(),
            role: TokenRole::Operator,
            tenant: None,
            expires_wall_ms: WALL_MS + GOOD_MS,
            created_wall_ms: WALL_MS,
            created_by: String::new(),
        };
        Command::EnrolFounder(EnrolFounder { node: self.newcomer(0), token, wall_ms: WALL_MS })
    }

    /// The commands that make a right to enter for a server or a worker, and let it in with that.
    pub fn admission(&self, index: NodeIndex) -> (Command, Command) {
        let node = self.newcomer(index);
        // Who left and was forgotten enters with another token.
        let worker = index.checked_sub(self.servers).and_then(|number| self.identities.get(number));
        let life = worker.map_or(0, |identity| identity.incarnation);
        let id = Digest::of(format!("the secret for {} in life {life}", node.name).as_bytes());
        let nonce = Digest::of(format!("the challenge to {} in life {life}", node.name).as_bytes()).0;
        let (created_wall_ms, expires_wall_ms) = (WALL_MS, WALL_MS + GOOD_MS);
        let token = JoinTokenRow { id, role: node.role, expires_wall_ms, created_wall_ms };
        let admit = AdmitNode { token: id, nonce, node, wall_ms: WALL_MS };
        (Command::CreateJoinToken(CreateJoinToken { token }), Command::AdmitNode(admit))
    }

    /// The command that changes how a server or a worker stands with the cluster.
    pub fn standing(&self, index: NodeIndex, standing: NodeStanding) -> Command {
        Command::SetNodeStanding(SetNodeStanding { node: self.newcomer(index).node, standing })
    }
}

/// Whether exactly these vote, and nothing else is under way.
fn is_of(membership: &Membership, voters: &[u64]) -> bool {
    let mut present = membership.voters.clone();
    present.sort_unstable();
    present == voters && membership.learners.is_empty() && membership.voters_outgoing.is_empty()
}

/// Whether a server votes or learns.
fn takes_part(membership: &Membership, index: NodeIndex) -> bool {
    let number = index as u64 + 1;
    let lists = [&membership.voters, &membership.voters_outgoing, &membership.learners];
    lists.iter().any(|list| list.contains(&number))
}
