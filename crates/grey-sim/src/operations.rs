//! What an operator and misfortune do to a cluster under conditions of one's choosing, and what one sees of it.

use grey_core::{Command, NodeStanding, State, WorkerId};
use grey_proof::Digest;
use grey_replica::Membership;

use crate::ledger::Ledger;
use crate::load::Work;
use crate::message::{Packet, Told};
use crate::network::NodeIndex;
use crate::scenario::Scenario;
use crate::world::Event;

impl Scenario {
    /// A client asks a server to propose a command, once and over their link. The number under which [`Scenario::told`] finds the answer.
    pub fn ask(&mut self, client: usize, server: usize, command: Command) -> u64 {
        let index = self.client(client);
        self.world.load_question(index, server, command)
    }

    /// What a client was answered; nothing as long as no answer came.
    pub fn told(&mut self, client: usize, number: u64) -> Option<Told> {
        let index = self.client(client);
        self.world.load(index)?.questions.get(&number).cloned().flatten()
    }

    /// The command with which the first server takes its place among the nodes.
    pub fn enrolment(&self) -> Command {
        self.world.enrolment()
    }

    /// The commands that make a right to enter for a server or a worker, and let it in with that.
    pub fn admission(&self, index: NodeIndex) -> (Command, Command) {
        self.world.admission(index)
    }

    /// The command that changes how a server or a worker stands with the cluster.
    pub fn standing(&self, index: NodeIndex, standing: NodeStanding) -> Command {
        self.world.standing(index, standing)
    }

    /// The command that a client's next submission is.
    pub fn submission(&mut self, client: usize, work: Work) -> Option<Command> {
        let index = self.client(client);
        self.world.load(index)?.command(work)
    }

    /// A client submits one job more, whatever its load is.
    pub fn submit(&mut self, client: usize, work: Work) {
        let index = self.client(client);
        self.world.load_submit(index, work);
    }

    /// The process on a node is killed, and stays so until it is started.
    pub fn kill(&mut self, node: NodeIndex) {
        self.world.kill(node);
        if let Some(node) = self.world.nodes.get_mut(node) {
            node.stays_down = true;
        }
        self.look_at_connections(node);
    }

    /// The process on a node is started, for the first time or again.
    pub fn start_again(&mut self, node: NodeIndex) {
        if let Some(node) = self.world.nodes.get_mut(node) {
            node.stays_down = false;
        }
        self.world.start(node);
        self.look_at_connections(node);
    }

    /// A node stands still for so many milliseconds, with all that runs on it; what it is sent waits for it.
    pub fn pause(&mut self, node: NodeIndex, for_ms: u64) {
        let until_us = self.world.now_us + for_ms * 1_000;
        self.world.pause(node, until_us);
    }

    fn look_at_connections(&mut self, node: NodeIndex) {
        for other in 0..self.world.nodes.len() {
            self.look_whether_away(other, node);
            self.look_whether_away(node, other);
        }
    }

    /// From now on the executor of a worker fails whatever it is given, through no fault of the tasks, or does so no longer.
    pub fn break_executor(&mut self, worker: usize, broken: bool) {
        let index = self.worker(worker);
        self.world.break_executor(index, if broken { u64::MAX } else { 0 });
    }

    /// A server is handed bytes of the engine as if another one had sent them.
    pub fn deliver(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        let packet = Box::new(Packet::Engine(bytes));
        self.world.queue.push(self.world.now_us, Event::Arrive { from, to, packet });
    }

    /// Whether a process runs on a node.
    pub fn is_up(&self, node: NodeIndex) -> bool {
        self.world.is_up(node)
    }

    /// Whether two nodes are up with nothing cut between them.
    pub fn are_in_touch(&self, one: NodeIndex, other: NodeIndex) -> bool {
        let cut = self.cut.contains(&(one, other)) || self.cut.contains(&(other, one));
        self.is_up(one) && self.is_up(other) && !cut
    }

    /// Every server that believes that it leads and may act for the cluster.
    pub fn leaders(&self) -> Vec<usize> {
        let leads = |server: &usize| self.seen(*server).is_some_and(|server| server.replica().leads());
        (0..self.world.servers).filter(leads).collect()
    }

    /// Whom a server takes for the leader; itself while it has been elected, even before it may act.
    pub fn believed_leader(&self, server: usize) -> Option<usize> {
        let leader = self.seen(server)?.replica().leader();
        usize::try_from(leader).ok()?.checked_sub(1)
    }

    /// The present term of a server, and whom it votes for in it.
    pub fn vote(&self, server: usize) -> Option<(u64, Option<usize>)> {
        let replica = self.seen(server)?.replica();
        let voted_for = usize::try_from(replica.voted_for()).ok().and_then(|number| number.checked_sub(1));
        Some((replica.term(), voted_for))
    }

    /// The membership that a server has applied, with servers by their numbers, which count from 1.
    pub fn membership(&self, server: usize) -> Option<Membership> {
        self.seen(server).map(|server| server.replica().membership())
    }

    /// The state that a server has applied.
    pub fn state_of(&self, server: usize) -> Option<&State> {
        self.seen(server).map(|server| server.replica().state())
    }

    /// The node of a worker.
    pub fn worker_node(&self, worker: usize) -> Option<Digest> {
        self.world.identities.get(worker).map(|identity| identity.node)
    }

    /// A worker as the leader has it, with the number that it has there.
    pub fn worker_row(&self, worker: usize) -> Option<(WorkerId, &grey_core::Worker)> {
        let (state, node) = (self.state_of(self.leader()?)?, self.worker_node(worker)?);
        state.workers().iter().find(|(_, row)| row.node == node).map(|(id, row)| (*id, row))
    }

    /// What was decided so far.
    pub fn ledger(&self) -> &Ledger {
        &self.world.ledger
    }
}
