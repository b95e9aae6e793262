//! Rows of a checkpoint that read and contradict one another are no state: what a state is assumed to hold when an entry is
//! applied was asked when it was loaded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;

use grey_core::{
    Command, Group, IdempotencyKey, Job, JobInfo, LoadError, Meta, Plan, RangeSet, StageProgress, State,
    TaskId, TaskRange, TenantId, plan,
};
use grey_proof::Digest;
use serde::Serialize;
use serde::de::DeserializeOwned;
use support::{applied, founded, register, spec, submit};

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

const META: u8 = 1;
const JOB: u8 = 4;
const GROUP: u8 = 5;
const KEY: u8 = 8;
const FLOW: u8 = 10;
const PROGRESS: u8 = 11;

/// A worker that runs some tasks of a keyed job of two stages.
fn state() -> State {
    let (mut state, _) = founded();
    applied(&mut state, register(1, 1, 4, Vec::new()));
    let mut job = submit(vec![(spec("a"), 10), (spec("b"), 5)]);
    job.key = Some(IdempotencyKey { key: "k".to_owned(), body: Digest::ZERO });
    let stage = |after| grey_core::StageSubmission { groups: 1, after, inputs: Vec::new(), items: None };
    job.flow.stages = vec![stage(Vec::new()), stage(vec![0])];
    applied(&mut state, Command::Submit(job));
    let placed: Plan = plan(&state, 3);
    applied(&mut state, Command::Plan(placed));
    state
}

/// Changes the first row of a table.
fn changed<T: Serialize + DeserializeOwned>(rows: &mut Rows, table: u8, change: impl FnOnce(&mut T)) {
    let value = rows.iter_mut().find(|(key, _)| key[0] == table).unwrap().1;
    let mut row: T = postcard::from_bytes(value).unwrap();
    change(&mut row);
    *value = postcard::to_allocvec(&row).unwrap();
}

fn job_info(job: &mut Job, change: impl FnOnce(&mut JobInfo)) {
    let mut info = job.info.as_ref().clone();
    change(&mut info);
    job.info = info.into();
}

#[test]
fn rows_that_contradict_one_another_are_refused_with_what_is_wrong() {
    type Change = fn(&mut Rows);
    let cases: [(&str, Change); 13] = [
        ("not conserved", |rows| changed::<Job>(rows, JOB, |job| job.counts.completed = u64::MAX)),
        ("not conserved", |rows| changed::<Job>(rows, JOB, |job| job.counts.failed = u64::MAX - 14)),
        ("of no tenant", |rows| {
            changed::<Job>(rows, JOB, |job| job_info(job, |info| info.tenant = TenantId(9)))
        }),
        ("outside of its job", |rows| {
            changed::<Job>(rows, JOB, |job| job_info(job, |info| info.tasks.first = TaskId(2)));
        }),
        ("never submitted", |rows| changed::<Meta>(rows, META, |meta| meta.tasks_submitted = 14)),
        ("impossible", |rows| changed::<Meta>(rows, META, |meta| meta.tasks_submitted = u64::MAX)),
        ("impossible", |rows| changed::<Meta>(rows, META, |meta| meta.jobs_submitted = u64::MAX)),
        // A tree's size and its edge, which are not public, stand last in the row: one leaf, and no hash.
        ("another edge", |rows| {
            let meta = rows.get_mut(&vec![META]).unwrap();
            let size = meta.len() - 2;
            meta[size] = 1;
        }),
        ("waits for foreign tasks", |rows| {
            changed::<Group>(rows, GROUP, |group| {
                // Two ranges in the wrong order, which have as many tasks as the one before.
                let whole = group.pending.ranges()[0];
                let one = TaskRange { first: whole.first, count: 1 };
                let rest = TaskRange { first: TaskId(whole.first.0 + 1), count: whole.count - 1 };
                let turned = postcard::to_allocvec(&vec![rest, one]).unwrap();
                group.pending = postcard::from_bytes::<RangeSet>(&turned).unwrap();
            });
        }),
        ("is of no tenant", |rows| {
            let (key, value) = rows.iter().find(|(key, _)| key[0] == KEY).unwrap();
            let (mut moved, value) = (key.clone(), value.clone());
            rows.remove(&moved);
            moved[4] = 9;
            rows.insert(moved, value);
        }),
        ("wait for none of its own", |rows| {
            changed::<grey_core::Flow>(rows, FLOW, |flow| {
                let mut last = flow.stages[1].as_ref().clone();
                last.after = vec![7];
                flow.stages[1] = last.into();
            });
        }),
        ("stages of", |rows| {
            changed::<grey_core::Flow>(rows, FLOW, |flow| flow.stages.reverse());
        }),
        ("started too early or waits for nothing", |rows| {
            changed::<StageProgress>(rows, PROGRESS, |progress| progress.waiting = true);
        }),
    ];
    let whole: Rows = state().all_rows().into_iter().collect();
    for (number, (wrong, change)) in cases.into_iter().enumerate() {
        let mut rows = whole.clone();
        change(&mut rows);
        match State::load(rows.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))) {
            Err(LoadError::Invariant(said)) if said.contains(wrong) => {}
            other => panic!("case {number}, {wrong}: {:?}", other.map(|state| state.hash())),
        }
    }
}
