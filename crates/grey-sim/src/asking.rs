//! How clients ask and hear: what a client does with what happens to it.

use grey_core::{Answer, Rejection, TenantId};

use crate::fact::{self, Fact};
use crate::message::{Packet, Told};
use crate::network::NodeIndex;
use crate::workload::{PATIENCE_US, Step};
use crate::world::{Input, Process, World};

/// How long a client waits before it asks again after a refusal that will pass, in microseconds.
const AGAIN_US: u64 = 80_000;
/// How long it does where its tenant is suspended.
const SUSPENDED_US: u64 = 500_000;

/// The tenant that may not submit now, where that is the answer.
fn refuses_suspended(told: &Told) -> Option<TenantId> {
    match told {
        Told::Applied(Err(Rejection::TenantSuspended(tenant))) => Some(*tenant),
        _ => None,
    }
}

impl World {
    pub fn client_step(&mut self, index: NodeIndex, input: Input) {
        let (calm, now_us) = (self.calm, self.now_us);
        let skipped_operations = &self.skipped_operations;
        let Some(Process::Client(client)) = self.nodes.get_mut(index).map(|node| &mut node.process) else {
            return;
        };
        let present = client.open.as_ref().map(|open| open.number);
        let number_of_client = client.number;
        let reply = match &input {
            Input::Packet(_, packet) => match packet.as_ref() {
                Packet::Reply { number, told, .. } if present == Some(*number) => {
                    Some((*number, told.clone()))
                }
                _ => return,
            },
            _ => None,
        };
        let step = match input {
            Input::Next if present.is_none() => {
                let skipped = |client, operation| skipped_operations.contains(&(client, operation));
                client.begin(&self.plan, calm, &skipped, &self.published, &mut self.counters)
            }
            Input::Again(number) if present == Some(number) => client.ask(),
            Input::TimeOut(number) if present == Some(number) => {
                client.look_elsewhere();
                client.ask()
            }
            Input::Packet(..) => {
                let Some((number, told)) = reply else { return };
                let is_suspended = refuses_suspended(&told);
                if let Some(tenant) = is_suspended {
                    let fact = Fact::Refused { tenant };
                    if self.broken.is_none() {
                        self.broken = self.checkers.observe(now_us, &fact).err();
                    }
                }
                match client.told(number, told) {
                    None => {
                        let wait_us = if is_suspended.is_some() { SUSPENDED_US } else { AGAIN_US };
                        self.later(now_us + wait_us, index, Input::Again(number));
                        return;
                    }
                    Some((open, told)) => {
                        let rest_us = client.rest_us(&self.plan);
                        let name = format!("client-{number_of_client}");
                        self.trace.fold(&[now_us, 7, index as u64, open.operation, u64::from(open.attempts)]);
                        self.trace
                            .say(now_us, || format!("{name}: operation {} is {told:?}", open.operation));
                        let operation = open.operation;
                        self.operations += 1;
                        if let fact::Told::Applied(Ok(Answer::Submitted { job, .. })) = &told {
                            self.published.push(*job);
                        }
                        self.tell(&Fact::Answered {
                            client: number_of_client,
                            operation,
                            wish: &open.wish,
                            told: &told,
                        });
                        Step::Rest(rest_us)
                    }
                }
            }
            _ => return,
        };
        self.client_goes_on(index, number_of_client, step);
    }

    fn client_goes_on(&mut self, index: NodeIndex, client: usize, step: Step) {
        let now_us = self.now_us;
        match step {
            Step::Done => {}
            Step::Rest(rest_us) => {
                let rest_us = if self.calm { rest_us.min(50_000) } else { rest_us };
                self.later(now_us + rest_us, index, Input::Next);
            }
            Step::Ask { server, number, ask } => {
                if let Some(Process::Client(asker)) = self.nodes.get(index).map(|node| &node.process)
                    && let Some(open) = &asker.open
                    && self.broken.is_none()
                {
                    if open.attempts == 1 {
                        self.begun.insert((client, open.operation));
                    }
                    let operation = open.operation;
                    let fact = Fact::Asked { client, operation, wish: &open.wish };
                    self.broken = self.checkers.observe(now_us, &fact).err();
                }
                let to = usize::try_from(server.saturating_sub(1)).unwrap_or(usize::MAX);
                self.send(index, to, Packet::Request { number, ask });
                self.later(now_us + PATIENCE_US, index, Input::TimeOut(number));
            }
        }
    }
}
