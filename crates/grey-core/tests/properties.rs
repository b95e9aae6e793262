//! Rules of the planner, of stealing and of submissions that hold in every state.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use grey_core::{
    Answer, Command, CreateTenant, Effect, Epoch, IdempotencyKey, JobId, Phase, Rejection, Resources,
    Revoked, State, TaskId, TenantId, plan, steal,
};
use grey_proof::Digest;
use proptest::prelude::*;
use support::{Step, applied, entry_for, founded, founded_at_newest, register, spec, step, submit};

fn after(steps: &[Step]) -> State {
    let (mut state, _) = founded_at_newest();
    for (number, step) in (1..).zip(steps) {
        let entry = entry_for(&state, step, number);
        let index = state.applied_index() + 1;
        grey_core::apply(&mut state, 1, index, &entry.encode().unwrap()).unwrap();
    }
    state
}

/// Of each job: how many tasks have not ended, and how many have.
fn accounts(state: &State) -> BTreeMap<JobId, (u64, u64)> {
    let of = |job: &grey_core::Job| {
        let counts = &job.counts;
        (counts.pending + job.held(), counts.completed + counts.failed + counts.cancelled)
    };
    state.jobs().iter().map(|(id, job)| (*id, of(job))).collect()
}

/// Epochs of the tasks that were assigned at some time.
fn epochs(state: &State) -> BTreeMap<TaskId, Epoch> {
    state.live().iter().map(|(task, live)| (*task, live.epoch)).collect()
}

/// Places all that can be placed.
fn place_all(state: &mut State) {
    loop {
        let planned = plan(state, 64);
        if planned.placements.is_empty() {
            return;
        }
        applied(state, Command::Plan(planned)).answer.unwrap();
    }
}

/// As many tasks of a tenant the planner gives away in one turn.
const TURN_TASKS: u128 = 64;
/// More rounds than any of these states needs before nobody is asked for anything.
const ROUNDS: usize = 64;

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// What is asked back is unstarted and its holder's, each once; given back, it waits, and no task is lost, made or ended by it. It comes to
    /// rest: nothing goes to and fro.
    #[test]
    fn stealing_conserves_tasks_and_comes_to_rest(
        steps in proptest::collection::vec(step(), 1..80),
        budget in 1u32..50,
    ) {
        let mut state = after(&steps);
        place_all(&mut state);
        let before = accounts(&state);
        for round in 0.. {
            let asked = steal(&state, budget);
            if asked.is_empty() {
                break;
            }
            prop_assert!(round < ROUNDS, "still asked for after {round} rounds: {asked:?}");
            let all: Vec<_> = asked.values().flatten().collect();
            prop_assert!(all.len() <= budget as usize);
            prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "each once");
            for (worker, attempts) in asked {
                for attempt in &attempts {
                    let live = &state.live()[&attempt.task];
                    prop_assert_eq!((live.epoch, live.phase), (attempt.epoch, Phase::Assigned { worker }));
                }
                let incarnation = state.workers()[&worker].incarnation;
                applied(&mut state, Command::Revoked(Revoked { worker, incarnation, attempts })).answer.unwrap();
            }
            prop_assert_eq!(&accounts(&state), &before);
            let given_back = epochs(&state);
            place_all(&mut state);
            let risen = |(task, epoch): (&TaskId, &Epoch)| given_back.get(task).is_none_or(|was| epoch >= was);
            prop_assert!(epochs(&state).iter().all(risen), "no epoch is used again");
        }
        prop_assert_eq!(accounts(&state), before);
    }

    /// Submitted again under its key it is the same job, and only time has passed; with another body it is refused.
    #[test]
    fn a_submission_under_the_same_key_is_the_same_job(
        steps in proptest::collection::vec(step(), 1..60),
        count in 1u32..20,
    ) {
        let mut state = after(&steps);
        let mut body = submit(vec![(spec("again"), count)]);
        let key = |body: u8| Some(IdempotencyKey { key: "the key".to_owned(), body: Digest([body; 32]) });
        body.key = key(1);
        let Ok(Answer::Submitted { job, tasks, duplicate: false }) =
            applied(&mut state, Command::Submit(body.clone())).answer
        else {
            // The tenant is suspended, or has as much as its quota allows.
            return Ok(());
        };
        let before = (accounts(&state), epochs(&state));
        let again = applied(&mut state, Command::Submit(body.clone()));
        prop_assert_eq!(again.answer, Ok(Answer::Submitted { job, tasks, duplicate: true }));
        prop_assert!(!again.effects.iter().any(|effect| matches!(effect, Effect::Event(_))));
        body.key = key(2);
        let refused = applied(&mut state, Command::Submit(body)).answer;
        prop_assert!(matches!(refused, Err(Rejection::IdempotencyConflict { .. })), "{refused:?}");
        prop_assert_eq!((accounts(&state), epochs(&state)), before);
    }

    /// Dominant-resource fairness (Ghodsi and others, NSDI 2011): no tenant's share over its weight is ahead of another's, who wants more and would
    /// fit, by more than one turn of its own tasks. And when a plan has room left, nothing waits that fits somewhere.
    #[test]
    fn shares_over_weights_differ_by_one_turn_at_most_and_nothing_waits_that_fits(
        tenants in proptest::collection::vec((1u32..5, 1u64..8, 1u64..8), 2..5),
        workers in 1u8..4,
        budget in 1u32..120,
    ) {
        let (mut state, _) = founded();
        let mut ids = Vec::new();
        for (number, (weight, cpu, memory)) in tenants.iter().enumerate() {
            let tenant = TenantId(3 + u32::try_from(number).unwrap());
            let defaults = state.tenants()[&TenantId(2)].defaults;
            let (name, weight_milli) = (format!("tenant-{number}"), weight * 1_000);
            let created = applied(&mut state, Command::CreateTenant(CreateTenant { name, defaults, weight_milli }));
            created.answer.unwrap();
            let mut specification = spec("one of many");
            specification.resources =
                Resources { cpu_millicores: cpu * 10, memory_bytes: memory << 20, disk_bytes: 0 };
            let mut body = submit(vec![(specification, 200)]);
            body.tenant = tenant;
            applied(&mut state, Command::Submit(body)).answer.unwrap();
            ids.push((tenant, u128::from(*weight), *cpu * 10, *memory << 20));
        }
        for node in 1..=workers {
            applied(&mut state, register(node, 1, 500, vec![])).answer.unwrap();
        }
        let planned = plan(&state, budget);
        applied(&mut state, Command::Plan(planned)).answer.unwrap();
        // Everything is in the units of what all workers have together: cpu, memory and slots.
        let totals = [1_000 * u128::from(workers), u128::from(workers) << 30, 500 * u128::from(workers)];
        let one = totals.iter().product::<u128>();
        let share = |used: [u128; 3]| used.iter().zip(totals).map(|(used, total)| used * (one / total)).max();
        let waits = |tenant: &TenantId| state.tenants()[tenant].queued_tasks > 0;
        let fits = |cpu: u64, memory: u64| {
            state.workers().values().any(|row| {
                let with = [row.charged.cpu_millicores + cpu, row.charged.memory_bytes + memory];
                with[0] <= row.capacity.cpu_millicores && with[1] <= row.capacity.memory_bytes
            })
        };
        let rows = ids.iter().map(|(tenant, weight, cpu, memory)| {
            let row = &state.tenants()[tenant];
            let used = [row.usage.cpu_millicores, row.usage.memory_bytes, row.held_tasks].map(u128::from);
            let turn = TURN_TASKS * share([*cpu, *memory, 1].map(u128::from)).unwrap();
            (*tenant, *weight, share(used).unwrap(), turn, fits(*cpu, *memory))
        });
        let rows: Vec<_> = rows.collect();
        let planned_all = state.live().len() < budget as usize;
        for (tenant, weight, mine, turn, _) in &rows {
            for (other, other_weight, theirs, _, other_fits) in &rows {
                if !waits(other) || !other_fits {
                    continue;
                }
                // Compared by multiplying with both weights: mine / weight <= theirs / other_weight + turn / weight.
                prop_assert!(
                    mine * other_weight <= theirs * weight + turn * other_weight,
                    "{tenant} has {mine} of weight {weight}, {other} {theirs} of weight {other_weight}"
                );
            }
        }
        for (tenant, _, _, _, fits) in &rows {
            prop_assert!(!planned_all || !waits(tenant) || !fits, "{tenant} waits and fits");
        }
    }
}
