//! The door: its rules in their order, and against a plainly written model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use grey_core::{RateLimit, TenantId};
use grey_health::{
    Admission, Amount, CapacityOptions, Gate, GateOptions, GateRefusal, HealthError, RefusalCode,
    ShedOptions, Work,
};
use proptest::prelude::*;

const RATE: RateLimit = RateLimit { tasks_per_second: 10, burst: 20 };

fn gate() -> Gate {
    Gate::new(GateOptions {
        capacity: CapacityOptions {
            heartbeats: Amount { count: 1, bytes: 10 },
            endings: Amount { count: 1, bytes: 10 },
            shared: Amount { count: 4, bytes: 100 },
        },
        shed: ShedOptions { target_ms: 50, interval_ms: 100, longest_retry_after_ms: 5_000 },
        retry_after_ms: 700,
        tenants: 2,
    })
    .unwrap()
}

fn work(tenant: u32, tasks: u64) -> Work {
    Work { tenant: TenantId(tenant), tasks, bytes: 10, rate: Some(RATE), queued_tasks: 0, queue_limit: 50 }
}

fn refusal(code: RefusalCode, limit: u64, usage: u64, retry_after_ms: Option<u64>) -> GateRefusal {
    GateRefusal { code, limit, usage, retry_after_ms }
}

/// Makes every rule refuse at once.
fn closed() -> (Gate, Vec<Admission>) {
    let mut gate = gate();
    let admitted = (0..4).map(|_| gate.admit(&Work { bytes: 25, ..work(1, 5) }, 0).unwrap()).collect();
    (0..=100).step_by(50).for_each(|now_ms| gate.observe_delay(80, now_ms));
    (gate, admitted)
}

#[test]
fn the_rules_are_asked_in_order_and_each_says_limit_usage_and_when_to_come_back() {
    let (mut gate, mut admitted) = closed();
    let mut asked = Work { queued_tasks: 30, ..work(1, 21) };
    assert_eq!(gate.admit(&asked, 100).unwrap_err(), refusal(RefusalCode::Burst, 20, 21, None));
    asked.tasks = 20;
    assert_eq!(gate.admit(&asked, 100).unwrap_err(), refusal(RefusalCode::Rate, 20, 19, Some(1_900)));
    asked.rate = None;
    assert_eq!(gate.admit(&asked, 100).unwrap_err(), refusal(RefusalCode::Queue, 50, 50, Some(700)));
    asked.queue_limit = 19;
    assert_eq!(gate.admit(&asked, 100).unwrap_err(), refusal(RefusalCode::Queue, 19, 50, None));
    asked.queue_limit = 70;
    assert_eq!(gate.admit(&asked, 100).unwrap_err(), refusal(RefusalCode::Proposals, 4, 4, Some(700)));
    gate.settle(admitted.remove(0));
    asked.bytes = 26;
    assert_eq!(gate.admit(&asked, 100).unwrap_err(), refusal(RefusalCode::ProposalBytes, 100, 75, Some(700)));
    asked.bytes = 101;
    assert_eq!(gate.admit(&asked, 100).unwrap_err(), refusal(RefusalCode::ProposalBytes, 100, 75, None));
    asked.bytes = 25;
    assert_eq!(gate.admit(&asked, 100).unwrap_err(), refusal(RefusalCode::Delay, 50, 80, Some(30)));
    gate.observe_delay(50, 100);
    gate.admit(&asked, 100).map(drop).unwrap();
}

#[test]
fn heartbeats_and_endings_get_in_while_everything_else_is_refused() {
    let (mut gate, _) = closed();
    let heartbeat = gate.admit_heartbeat(10).unwrap();
    gate.admit_ending(10).map(drop).unwrap();
    let full = refusal(RefusalCode::Proposals, 4, 4, Some(700));
    assert_eq!(gate.admit_heartbeat(10).unwrap_err(), full);
    assert_eq!(gate.admit_ending(10).unwrap_err(), full);
    gate.settle(heartbeat);
    gate.admit_heartbeat(10).map(drop).unwrap();
}

#[test]
fn a_refusal_charges_nothing() {
    let (mut gate, admitted) = closed();
    let before = gate.clone();
    for _ in 0..50 {
        assert!(gate.admit(&work(2, 20), 100).is_err());
    }
    assert_eq!(gate, before);
    admitted.into_iter().for_each(|admission| gate.settle(admission));
    gate.observe_delay(0, 100);
    gate.admit(&work(2, 20), 100).map(drop).unwrap();
}

#[test]
fn tenants_are_bounded_and_those_of_whom_nothing_is_left_are_forgotten() {
    let mut gate = gate();
    let first = gate.admit(&work(1, 10), 0).unwrap();
    let second = gate.admit(&work(2, 1), 0).unwrap();
    let full = refusal(RefusalCode::Tenants, 2, 2, Some(700));
    assert_eq!(gate.admit(&work(3, 1), 500).unwrap_err(), full);
    gate.settle(second);
    gate.settle(first);
    assert_eq!(gate.admit(&work(3, 1), 500).unwrap_err(), full, "it looks once a millisecond");
    let third = gate.admit(&work(3, 1), 501).unwrap();
    gate.settle(third);
    // The first one's rate has not drained, so it is remembered.
    let rate = gate.admit(&work(1, 20), 501).unwrap_err();
    assert_eq!(rate, refusal(RefusalCode::Rate, 20, 5, Some(499)));
    assert_eq!(rate.to_string(), "refused (rate_exceeded): 5 is used of a limit of 20; try again in 499 ms");
}

#[test]
fn options_name_all_that_is_wrong() {
    GateOptions::default().validate().unwrap();
    let mut wrong = GateOptions { retry_after_ms: 0, tenants: 0, ..GateOptions::default() };
    wrong.capacity.heartbeats.bytes = 0;
    let Err(HealthError::Options { problems, .. }) = wrong.validate() else { panic!("they passed") };
    let fields: Vec<&str> = problems.iter().map(|problem| problem.field).collect();
    assert_eq!(fields, ["capacity.heartbeats.bytes", "retry_after_ms", "tenants"]);
}

#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Work { tenant: u32, tasks: u64, bytes: u64, queued: u64 },
    Heartbeat(u64),
    Ending(u64),
    Settle(usize),
    Observe(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0u64..90).prop_map(Step::Wait),
        8 => (1u32..3, 1u64..25, 0u64..60, 0u64..40)
            .prop_map(|(tenant, tasks, bytes, queued)| Step::Work { tenant, tasks, bytes, queued }),
        2 => (0u64..30).prop_map(Step::Heartbeat),
        2 => (0u64..30).prop_map(Step::Ending),
        8 => any::<usize>().prop_map(Step::Settle),
        2 => (0u64..90).prop_map(Step::Observe),
    ];
    prop::collection::vec(step, 1..200)
}

/// What the model remembers: everything.
#[derive(Default)]
struct Model {
    now_ms: u64,
    /// When how many tasks of a tenant were let in.
    admitted: BTreeMap<u32, Vec<(u64, u64)>>,
    /// Class, bytes, tenant and tasks of what is under way; the class by the size of its own room.
    under_way: Vec<(u8, u64, u32, u64)>,
    observed: Vec<(u64, u64)>,
}

impl Model {
    fn rate_allows(&self, tenant: u32, tasks: u64) -> bool {
        let mut together = tasks;
        let history = self.admitted.get(&tenant).map_or(&[][..], Vec::as_slice);
        together <= RATE.burst
            && history.iter().rev().all(|(at_ms, earlier)| {
                together += earlier;
                together * 1_000 <= RATE.burst * 1_000 + RATE.tasks_per_second * (self.now_ms - at_ms)
            })
    }

    /// Of what there would be too little with one more.
    fn short_of(&self, class: u8, bytes: u64) -> Option<RefusalCode> {
        let shared = |extra: Option<(u8, u64)>| {
            let of_class = |class: u8| {
                let all = self.under_way.iter().map(|one| (one.0, one.1)).chain(extra);
                all.filter(move |one| one.0 == class).map(|one| one.1)
            };
            let own = |class: u8| if class == b'o' { (0, 0) } else { (1, 10) };
            [b'h', b'e', b'o'].iter().fold((0, 0), |sum, class| {
                let count = (of_class(*class).count() as u64).saturating_sub(own(*class).0);
                let bytes = of_class(*class).sum::<u64>().saturating_sub(own(*class).1);
                (sum.0 + count, sum.1 + bytes)
            })
        };
        let after = shared(Some((class, bytes)));
        match after {
            (5.., _) => Some(RefusalCode::Proposals),
            (_, 101..) => Some(RefusalCode::ProposalBytes),
            _ => None,
        }
    }

    fn delayed(&self) -> bool {
        let (mut after_ms, mut reached) = (self.now_ms, false);
        for (at_ms, delay_ms) in self.observed.iter().rev() {
            if *delay_ms <= 50 || after_ms - at_ms > 100 {
                break;
            }
            after_ms = *at_ms;
            reached |= self.now_ms - at_ms >= 100;
        }
        reached
    }

    fn refuses(&self, work: &Work) -> Option<RefusalCode> {
        let tenant = work.tenant.0;
        let waiting: u64 = self.under_way.iter().filter(|one| one.2 == tenant).map(|one| one.3).sum();
        if work.tasks > RATE.burst {
            Some(RefusalCode::Burst)
        } else if !self.rate_allows(tenant, work.tasks) {
            Some(RefusalCode::Rate)
        } else if work.queued_tasks + waiting + work.tasks > 50 {
            Some(RefusalCode::Queue)
        } else {
            self.short_of(b'o', work.bytes).or_else(|| self.delayed().then_some(RefusalCode::Delay))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn it_lets_in_exactly_what_the_whole_history_allows(steps in steps()) {
        let mut gate = gate();
        let mut model = Model::default();
        let mut admissions: Vec<Admission> = Vec::new();
        for step in steps {
            match step {
                Step::Wait(ms) => model.now_ms += ms,
                Step::Work { tenant, tasks, bytes, queued } => {
                    let work = Work { bytes, queued_tasks: queued, ..work(tenant, tasks) };
                    let expected = model.refuses(&work);
                    let answer = gate.admit(&work, model.now_ms);
                    prop_assert_eq!(answer.as_ref().err().map(|refusal| refusal.code), expected);
                    if let Ok(admission) = answer {
                        admissions.push(admission);
                        model.under_way.push((b'o', bytes, tenant, tasks));
                        model.admitted.entry(tenant).or_default().push((model.now_ms, tasks));
                    }
                }
                Step::Heartbeat(bytes) | Step::Ending(bytes) => {
                    let heartbeat = matches!(step, Step::Heartbeat(_));
                    let class = if heartbeat { b'h' } else { b'e' };
                    let answer = if heartbeat { gate.admit_heartbeat(bytes) } else { gate.admit_ending(bytes) };
                    let expected = model.short_of(class, bytes);
                    prop_assert_eq!(answer.as_ref().err().map(|refusal| refusal.code), expected);
                    if let Ok(admission) = answer {
                        admissions.push(admission);
                        model.under_way.push((class, bytes, 0, 0));
                    }
                }
                Step::Settle(which) if !admissions.is_empty() => {
                    let which = which % admissions.len();
                    gate.settle(admissions.remove(which));
                    model.under_way.remove(which);
                }
                Step::Settle(_) => {}
                Step::Observe(delay_ms) => {
                    gate.observe_delay(delay_ms, model.now_ms);
                    model.observed.push((model.now_ms, delay_ms));
                }
            }
        }
    }
}
