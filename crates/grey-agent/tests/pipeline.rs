//! The agent against the real core: what is assigned is run, reported, signed and accepted once, whatever comes between.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, VecDeque};

use grey_agent::{Adoptable, Agent, AgentOptions, KeepOptions, Output, Start, StopReason};
use grey_core::{
    Answer, Assignment, AttemptId, AttemptResult, Bootstrap, Cancel, ChangeTimeout, Command, Content,
    Devices, Effect, Entry, Epoch, ExecutorKind, FromWorker, GroupSubmission, HistoryRecord, JobId,
    LoseWorker, Outcome, Placement, Rejection, ReportAnswer, ReportRecord, ReportRefusal, Resources, Retries,
    SandboxLevel, Signer, State, Submit, Target, TaskDefaults, TaskId, TaskRange, TaskSpec, TenantId,
    TenantRecord, Usage, UsageSource, WorkerId, apply_entry, check_report, leaves, plan,
};
use grey_health::LeaseOptions;
use grey_proof::{Digest, SigningKey, merkle_root};

const USAGE: Usage =
    Usage { started_at_ms: 5_000, duration_us: 7_000, cpu_time_us: 10, peak_memory_bytes: 4_096 };

fn result(outcome: Outcome) -> AttemptResult {
    AttemptResult {
        outcome,
        sandbox: SandboxLevel::PidNamespace,
        usage_source: UsageSource::ResourceUsage,
        stdout: Content::Inline(b"hello\n".to_vec()),
        stderr: Content::EMPTY,
        files: Vec::new(),
        message: String::new(),
    }
}

fn key() -> SigningKey {
    SigningKey::from_seed([3; 32])
}

fn options(incarnation: u64) -> AgentOptions {
    AgentOptions {
        signer: Signer {
            cluster: Digest::of(b"cluster"),
            node: key().verifying_key().id(),
            certificate: Digest::of(b"certificate"),
        },
        name: "host".to_owned(),
        incarnation,
        capacity: Resources { cpu_millicores: 2_000, memory_bytes: 1 << 30, disk_bytes: 0 },
        sandbox: SandboxLevel::PidNamespace,
        labels: Vec::new(),
        devices: vec![Devices { name: "gpu".to_owned(), count: 2 }],
        parallel: 4,
        lease: None,
        salt_seed: [9; 32],
    }
}

/// One cluster of one worker, without disks or threads.
struct House {
    state: State,
    agent: Agent,
    journal: BTreeMap<u64, Vec<u8>>,
    running: VecDeque<AttemptId>,
    most_running: usize,
    executed: BTreeMap<AttemptId, u32>,
    reports: Vec<ReportRecord>,
    counts: BTreeMap<JobId, grey_core::Counts>,
    timeouts: Vec<(AttemptId, u64)>,
    starts: BTreeMap<AttemptId, Start>,
    adopted: Vec<AttemptId>,
    released: Vec<AttemptId>,
    connected: bool,
}

impl House {
    fn new() -> House {
        let mut state = State::new();
        let defaults = TaskDefaults {
            resources: Resources { cpu_millicores: 500, memory_bytes: 1 << 20, disk_bytes: 0 },
            timeout_ms: 60_000,
            output_limit_bytes: 1 << 20,
            priority: 100,
        };
        let tenants = vec![TenantRecord { name: "default".to_owned(), defaults }];
        let body = Bootstrap { cluster: Digest::of(b"cluster"), wall_ms: 1, tenants };
        apply_entry(&mut state, 1, 1, Entry { time_ms: 0, command: Command::Bootstrap(body) });
        House {
            state,
            agent: Agent::new(options(1), key(), [], &[]).unwrap(),
            journal: BTreeMap::new(),
            running: VecDeque::new(),
            most_running: 0,
            executed: BTreeMap::new(),
            reports: Vec::new(),
            counts: BTreeMap::new(),
            timeouts: Vec::new(),
            adopted: Vec::new(),
            released: Vec::new(),
            starts: BTreeMap::new(),
            connected: true,
        }
    }

    fn propose(&mut self, command: Command) -> Result<Answer, Rejection> {
        let index = self.state.applied_index() + 1;
        let time_ms = self.state.meta().time_ms;
        let applied = apply_entry(&mut self.state, 1, index, Entry { time_ms, command });
        self.state.check().unwrap();
        for effect in applied.effects {
            match effect {
                Effect::Assign(assignment) => self.agent.assign(&assignment),
                Effect::ChangeTimeout { attempts, timeout_ms, .. } => {
                    self.agent.change_timeout(&attempts, timeout_ms);
                }
                Effect::Stop { attempt, .. } => self.agent.stop(attempt, result(Outcome::Cancelled), USAGE),
                Effect::History(HistoryRecord::Report(record)) => self.reports.push(*record),
                Effect::History(HistoryRecord::Job(job, record)) => {
                    self.counts.insert(job, record.counts);
                }
                _ => {}
            }
        }
        applied.answer
    }

    /// Lets cluster time pass, step by step, as it is bound to.
    fn pass(&mut self, ms: u64) {
        let target_ms = self.state.meta().time_ms + ms;
        while self.state.meta().time_ms < target_ms {
            let index = self.state.applied_index() + 1;
            apply_entry(&mut self.state, 1, index, Entry { time_ms: target_ms, command: Command::Tick });
        }
    }

    fn submit(&mut self, tasks: u32) -> JobId {
        self.submit_with_devices(tasks, &[])
    }

    fn submit_with_devices(&mut self, tasks: u32, devices: &[(&str, u32)]) -> JobId {
        let devices = devices.iter().map(|(name, count)| Devices { name: (*name).to_owned(), count: *count });
        let spec = TaskSpec {
            name: String::new(),
            executor: ExecutorKind::Process,
            command: vec!["true".to_owned()],
            environment: Vec::new(),
            stdin: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
            resources: Resources { cpu_millicores: 500, memory_bytes: 1 << 20, disk_bytes: 0 },
            priority: 100,
            devices: devices.collect(),
            constraints: Default::default(),
            retries: Retries::default(),
            timeout_ms: 60_000,
            output_limit_bytes: 1 << 20,
        };
        let answer = self.propose(Command::Submit(Submit {
            tenant: TenantId(1),
            submitter: String::new(),
            name: String::new(),
            labels: Vec::new(),
            key: None,
            groups: vec![GroupSubmission { spec, count: tasks }],
            flow: Default::default(),
            wall_ms: 1,
        }));
        let Ok(Answer::Submitted { job, .. }) = answer else { panic!("{answer:?}") };
        job
    }

    /// Does what the agent asked for; whether there was anything.
    fn turn(&mut self) -> bool {
        if self.agent.is_down() && self.connected {
            self.agent.announce();
        }
        self.agent.settle().unwrap();
        let outputs: Vec<Output> = self.agent.outputs().collect();
        let acted = !outputs.is_empty();
        for output in outputs {
            match output {
                Output::Send(FromWorker::Register(body)) if self.connected => {
                    match self.propose(Command::RegisterWorker(body)) {
                        Ok(Answer::Registered { worker, unknown }) => self.agent.registered(worker, &unknown),
                        other => panic!("{other:?}"),
                    }
                }
                Output::Send(FromWorker::Report(report)) if self.connected => {
                    let sequence = report.sequence;
                    let answer = match check_report(&self.state, &report, &key().verifying_key()) {
                        Ok(()) => match self.propose(Command::Report(report)) {
                            Ok(_) => ReportAnswer::Accepted,
                            Err(Rejection::ReportOutOfOrder { .. }) => ReportAnswer::TooEarly,
                            Err(other) => panic!("{other}"),
                        },
                        Err(ReportRefusal::NotHeld(attempts)) => ReportAnswer::NotHeld(attempts),
                        Err(ReportRefusal::Unregistered) => ReportAnswer::Unregistered,
                        Err(other) => panic!("{other}"),
                    };
                    self.agent.reported(sequence, answer);
                }
                Output::Send(FromWorker::Revoked(body)) => {
                    drop(self.propose(Command::Revoked(body)).unwrap())
                }
                Output::Send(_) => self.agent.unavailable(),
                Output::Execute(start) => {
                    *self.executed.entry(start.attempt).or_default() += 1;
                    self.running.push_back(start.attempt);
                    self.most_running = self.most_running.max(self.running.len());
                    self.agent.started(start.attempt);
                    self.starts.insert(start.attempt, start);
                }
                Output::Adopt(start) => {
                    self.adopted.push(start.attempt);
                    self.running.push_back(start.attempt);
                    self.agent.started(start.attempt);
                }
                Output::Release(attempts) => self.released.extend(attempts),
                Output::Stop(attempt, reason) => {
                    self.running.retain(|running| *running != attempt);
                    let outcome = match reason {
                        StopReason::Cancelled => Outcome::Cancelled,
                        StopReason::Infrastructure => Outcome::Infrastructure,
                    };
                    self.agent.finished(attempt, result(outcome), USAGE);
                }
                Output::ChangeTimeout(attempt, timeout_ms) => self.timeouts.push((attempt, timeout_ms)),
                Output::Persist(changes) => {
                    for (key, value) in changes {
                        match value {
                            Some(value) => drop(self.journal.insert(key, value)),
                            None => drop(self.journal.remove(&key)),
                        }
                    }
                    self.agent.persisted();
                }
            }
        }
        acted
    }

    fn plan(&mut self) -> bool {
        let planned = plan(&self.state, 1_000);
        let placed = !planned.placements.is_empty();
        if placed {
            self.propose(Command::Plan(planned)).unwrap();
        }
        placed
    }

    /// Until nothing moves. Running attempts end with status 0 when `complete`.
    fn run(&mut self, complete: bool) {
        for _ in 0..100_000 {
            self.agent.elapse(1_000);
            let mut moved = self.turn() | self.plan();
            if complete && let Some(attempt) = self.running.pop_front() {
                self.agent.finished(attempt, result(Outcome::Exited(0)), USAGE);
                moved = true;
            }
            // A heartbeat is due some time, whatever happens.
            if !moved && self.agent.next_wake_us().is_none_or(|wake| wake > 60_000) {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// The worker's process ends and another one begins with what was durable.
    fn restart(&mut self, incarnation: u64) {
        let entries = self.journal.iter().map(|(key, bytes)| (*key, bytes.as_slice()));
        self.agent = Agent::new(options(incarnation), key(), entries, &[]).unwrap();
        self.running.clear();
    }

    /// Every accepted report's leaves lead to the root that its worker signed.
    fn check_reports(&self) {
        for record in &self.reports {
            let signer = Signer { certificate: record.certificate, ..options(1).signer };
            let leaves = leaves(&signer, &record.signed.salt, &record.runs).unwrap();
            assert_eq!(merkle_root(&leaves), record.signed.root, "report {}", record.position);
        }
    }
}

#[test]
fn every_task_is_run_once_and_every_report_is_provable() {
    let mut house = House::new();
    let job = house.submit(1_000);
    house.run(true);
    assert_eq!(house.counts[&job].completed, 1_000);
    assert_eq!(house.executed.len(), 1_000);
    assert!(house.executed.values().all(|times| *times == 1));
    assert_eq!(house.most_running, 4, "four of half a core each fit on two cores");
    assert!(house.agent.is_idle());
    assert!(house.journal.is_empty(), "what was accepted leaves the outbox");
    house.check_reports();
}

#[test]
fn results_outlive_the_worker_s_process_and_a_lost_cluster() {
    let mut house = House::new();
    let job = house.submit(10);
    house.run(false);
    assert_eq!(house.running.len(), 4);
    // Given: two results that are durable while the cluster cannot be reached.
    house.connected = false;
    for _ in 0..2 {
        let attempt = house.running.pop_front().unwrap();
        house.agent.finished(attempt, result(Outcome::Exited(0)), USAGE);
    }
    for _ in 0..100 {
        house.agent.elapse(1_000);
        house.turn();
    }
    assert!(!house.journal.is_empty());
    // When: the process dies and another one begins.
    let before = house.executed.clone();
    house.restart(2);
    house.connected = true;
    house.run(true);
    // Then: the two results count, and only what was not finished ran again, in a later epoch.
    assert_eq!(house.counts[&job].completed, 10);
    assert_eq!(house.executed.values().sum::<u32>(), 10 + 2 + (before.len() as u32 - 4));
    house.check_reports();
    assert!(house.journal.is_empty());
}

#[test]
fn what_runs_goes_on_in_the_next_life_and_counts_once() {
    // Given: four attempts that run, of which one has ended and is durable, and something is kept with each.
    let mut house = House::new();
    let leased = |incarnation| {
        let lease = LeaseOptions { length_ms: 60_000, ..LeaseOptions::default() };
        let keep = KeepOptions { lease, heartbeat_ms: 50_000, ..KeepOptions::default() };
        AgentOptions { lease: Some(keep), ..options(incarnation) }
    };
    house.agent = Agent::new(leased(1), key(), [], &[]).unwrap();
    let job = house.submit(4);
    house.run(false);
    let running: Vec<AttemptId> = house.running.iter().copied().collect();
    assert_eq!(running.len(), 4);
    house.connected = false;
    house.agent.finished(running[3], result(Outcome::Exited(0)), USAGE);
    for _ in 0..100 {
        house.agent.elapse(1_000);
        house.turn();
    }
    assert_eq!((house.journal.len(), house.released.as_slice()), (1, &running[3..]));
    house.released.clear();
    // When: another life begins, and the executor has all four, of which one is nobody knows what.
    let found = |attempt: &AttemptId| Adoptable {
        attempt: *attempt,
        record: house.starts[attempt].record.clone(),
        timeout_ms: 77,
    };
    let mut found: Vec<Adoptable> = running.iter().map(found).collect();
    assert!(found.iter().all(|one| !one.record.is_empty()));
    found[1].record[0] = 0;
    let entries = house.journal.iter().map(|(key, bytes)| (*key, bytes.as_slice()));
    house.agent = Agent::new(leased(2), key(), entries, &found).unwrap();
    (house.connected, house.running) = (true, VecDeque::new());
    assert_eq!((house.agent.held(), house.agent.running()), (2, 2));
    house.run(true);
    // Then: two went on, and the result of the one that had ended counts; the unknown one runs again, and it alone.
    assert_eq!(house.adopted, [running[0], running[2]]);
    assert_eq!(house.starts[&running[0]].timeout_ms, 60_000, "it is not started again");
    assert_eq!(&house.released[..2], [running[1], running[3]], "at once, since nobody waits for them");
    assert_eq!(house.counts[&job].completed, 4);
    assert!(running.iter().all(|attempt| house.executed[attempt] == 1));
    let again = AttemptId { epoch: Epoch(2), ..running[1] };
    assert_eq!((house.executed.len(), house.executed[&again]), (5, 1));
    let mut released: Vec<AttemptId> = house.released.clone();
    released.sort_unstable();
    released.dedup();
    assert_eq!(released.len(), house.released.len(), "an attempt is released once");
    assert_eq!(released.len(), 5, "and every one is");
    house.check_reports();
}

#[test]
fn an_adopted_attempt_keeps_its_devices_and_what_the_cluster_does_not_want_is_ended() {
    let lease = LeaseOptions { length_ms: 60_000, ..LeaseOptions::default() };
    let keep = KeepOptions { lease, heartbeat_ms: 50_000, ..KeepOptions::default() };
    let leased = |incarnation| AgentOptions { lease: Some(keep.clone()), ..options(incarnation) };
    let mut house = House::new();
    house.agent = Agent::new(leased(1), key(), [], &[]).unwrap();
    house.submit_with_devices(1, &[("gpu", 1)]);
    house.run(false);
    let first = house.running[0];
    let record = house.starts[&first].record.clone();
    let found = [
        Adoptable { attempt: first, record: record.clone(), timeout_ms: 9 },
        Adoptable { attempt: AttemptId { epoch: Epoch(9), ..first }, record, timeout_ms: 9 },
    ];
    house.agent = Agent::new(leased(2), key(), [], &found).unwrap();
    house.running.clear();
    house.submit_with_devices(1, &[("gpu", 1)]);
    house.run(false);
    // Then: the attempt that the cluster does not know was stopped and released, and the new one has the other device.
    assert_eq!(house.released, [found[1].attempt]);
    let second = house.executed.keys().find(|attempt| **attempt != first).unwrap();
    let devices = |attempt| &house.starts[attempt].devices;
    assert_eq!((devices(&first)[0].1.as_slice(), devices(second)[0].1.as_slice()), (&[0][..], &[1][..]));
}

#[test]
fn a_report_that_was_taken_and_not_answered_is_not_counted_twice() {
    let mut house = House::new();
    let job = house.submit(3);
    house.run(false);
    while let Some(attempt) = house.running.pop_front() {
        house.agent.finished(attempt, result(Outcome::Exited(0)), USAGE);
    }
    // Given: the report is applied and its answer lost; the worker announces itself again in the same life.
    let mut lost = None;
    while lost.is_none() {
        house.agent.elapse(1_000);
        house.agent.settle().unwrap();
        let outputs: Vec<Output> = house.agent.outputs().collect();
        for output in outputs {
            match output {
                Output::Persist(_) => house.agent.persisted(),
                Output::Release(_) => {}
                Output::Send(FromWorker::Report(report)) => {
                    house.propose(Command::Report(report.clone())).unwrap();
                    lost = Some(report);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    house.agent.unavailable();
    house.agent.announce();
    house.run(true);
    assert_eq!(house.counts[&job].completed, 3);
    assert_eq!(house.state.meta().refused_results, 0);
    assert_eq!(house.reports.len(), 1);
    house.check_reports();
}

#[test]
fn another_certificate_is_named_by_all_that_is_signed_from_then_on_and_nothing_runs_twice() {
    let mut house = House::new();
    let job = house.submit(4);
    house.run(false);
    // Given: a result that was sent under the first certificate, and whose answer is outstanding.
    let attempt = house.running.pop_front().unwrap();
    house.agent.finished(attempt, result(Outcome::Exited(0)), USAGE);
    let mut sent = None;
    while sent.is_none() {
        house.agent.elapse(1_000);
        house.agent.settle().unwrap();
        for output in house.agent.outputs().collect::<Vec<Output>>() {
            match output {
                Output::Persist(_) => house.agent.persisted(),
                Output::Send(FromWorker::Report(report)) => {
                    sent = Some(report).filter(|sent| sent.signed.is_some())
                }
                Output::Release(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    // When: the worker gets another certificate, and announces itself again with it.
    let second = Digest::of(b"second");
    house.agent.certified(second);
    assert!(house.agent.is_down());
    house.agent.announce();
    house.run(true);
    // Then: what was sent before is out of date, and is sent again under the new one.
    let late = check_report(&house.state, &sent.unwrap(), &key().verifying_key());
    assert!(matches!(late, Err(ReportRefusal::Unregistered)), "{late:?}");
    assert_eq!(house.counts[&job].completed, 4);
    assert!(house.executed.values().all(|times| *times == 1));
    assert!(house.reports.iter().all(|record| record.certificate == second));
    house.check_reports();
    // The same one again changes nothing.
    house.agent.certified(second);
    assert!(!house.agent.is_down());
}

#[test]
fn a_cancel_stops_what_runs_and_what_waits_and_its_results_are_refused_and_still_provable() {
    let mut house = House::new();
    let job = house.submit(8);
    house.run(false);
    let target = Target::Job(job);
    // Given: one result is under way when the cancel is committed.
    let attempt = house.running.pop_front().unwrap();
    house.agent.finished(attempt, result(Outcome::Exited(0)), USAGE);
    let cancelled = house.propose(Command::Cancel(Cancel { tenant: TenantId(1), target, wall_ms: 0 }));
    assert_eq!(cancelled, Ok(Answer::Cancelled { cancelled: 8, already_ended: 0 }));
    house.run(true);
    assert_eq!(house.counts[&job].cancelled, 8);
    assert!(house.running.is_empty());
    assert!(house.agent.is_idle());
    assert!(house.state.live().is_empty(), "nothing is charged any more");
    house.check_reports();
}

#[test]
fn results_of_a_worker_that_was_taken_for_lost_are_left_out_and_their_tasks_run_again() {
    let mut house = House::new();
    let job = house.submit(3);
    house.run(false);
    // Given: the cluster gave up on the worker, which goes on without knowing.
    let before: Vec<AttemptId> = house.running.iter().copied().collect();
    let lost = LoseWorker { worker: WorkerId(1), incarnation: 1, session: 1 };
    house.propose(Command::LoseWorker(lost)).unwrap();
    while let Some(attempt) = house.running.pop_front() {
        house.agent.finished(attempt, result(Outcome::Exited(0)), USAGE);
    }
    house.run(true);
    assert_eq!(house.executed.len(), before.len(), "in quarantine it gets nothing");
    house.pass(30_000);
    // Then: it was told to announce itself, and to leave those results out.
    house.run(true);
    assert_eq!(house.counts[&job].completed, 3);
    assert_eq!(house.state.meta().refused_results, 0);
    for attempt in before {
        assert!(house.executed.keys().any(|one| one.task == attempt.task && one.epoch > attempt.epoch));
    }
    house.check_reports();
}

#[test]
fn a_forged_report_is_refused_before_it_is_proposed() {
    let mut house = House::new();
    house.submit(2);
    house.run(false);
    while let Some(attempt) = house.running.pop_front() {
        house.agent.finished(attempt, result(Outcome::Exited(0)), USAGE);
    }
    let report = loop {
        house.agent.elapse(1_000);
        house.agent.settle().unwrap();
        let outputs: Vec<Output> = house.agent.outputs().collect();
        let mut found = None;
        for output in outputs {
            match output {
                Output::Persist(_) => house.agent.persisted(),
                Output::Release(_) => {}
                Output::Send(FromWorker::Report(report)) => found = Some(report),
                other => panic!("{other:?}"),
            }
        }
        if let Some(report) = found {
            break report;
        }
    };
    let verifying = key().verifying_key();
    assert_eq!(check_report(&house.state, &report, &verifying), Ok(()));
    let mut forged = report.clone();
    forged.finished[0].result.outcome = Outcome::Exited(1);
    assert_eq!(check_report(&house.state, &forged, &verifying), Err(ReportRefusal::BadSignature));
    let mut forged = report.clone();
    forged.signed.as_mut().unwrap().signature[5] ^= 1;
    assert_eq!(check_report(&house.state, &forged, &verifying), Err(ReportRefusal::BadSignature));
    let mut forged = report.clone();
    forged.incarnation += 1;
    assert_eq!(check_report(&house.state, &forged, &verifying), Err(ReportRefusal::Unregistered));
    let mut forged = report;
    forged.finished[0].tasks.count = u32::MAX;
    assert_eq!(check_report(&house.state, &forged, &verifying), Err(ReportRefusal::Malformed));
}

#[test]
fn a_damaged_outbox_is_named() {
    let found: Vec<(u64, &[u8])> = vec![(7, b"\xff\xff")];
    let error = Agent::new(options(1), key(), found, &[]).err().unwrap();
    assert!(error.to_string().contains("record 7"), "{error}");
}

#[test]
fn devices_are_had_by_one_attempt_at_a_time_and_who_needs_none_does_not_wait_for_them() {
    // Given: a worker of two devices and room for four, three tasks that need one device each, then one that needs none.
    let mut house = House::new();
    house.turn();
    house.submit_with_devices(3, &[("gpu", 1)]);
    house.submit(1);
    house.plan();
    house.turn();
    // Then: two run on a device each, the third waits, and the one without runs beside them.
    let running: Vec<u64> = house.running.iter().map(|attempt| attempt.task.0).collect();
    assert_eq!(running, [1, 2, 4]);
    let numbers = |house: &House, task: u64| {
        house.starts[&AttemptId { task: TaskId(task), epoch: Epoch(1) }].devices.clone()
    };
    assert_eq!(numbers(&house, 1), [("gpu".to_owned(), vec![0])]);
    assert_eq!(numbers(&house, 2), [("gpu".to_owned(), vec![1])]);
    assert!(numbers(&house, 4).is_empty());
    // When: the second ends.
    let second = AttemptId { task: TaskId(2), epoch: Epoch(1) };
    house.running.retain(|attempt| *attempt != second);
    house.agent.finished(second, result(Outcome::Exited(0)), USAGE);
    house.turn();
    // Then: the third has its device.
    assert_eq!(numbers(&house, 3), [("gpu".to_owned(), vec![1])]);
}

#[test]
fn a_time_out_that_changes_reaches_what_runs_and_what_is_yet_to_start() {
    let mut house = House::new();
    house.turn();
    let job = house.submit(6);
    house.plan();
    house.turn();
    assert_eq!(house.running.len(), 4);
    let body = ChangeTimeout { tenant: TenantId(1), target: Target::Job(job), timeout_ms: 7_000 };
    assert_eq!(house.propose(Command::ChangeTimeout(body)), Ok(Answer::TimeoutChanged { tasks: 6 }));
    house.turn();
    let told: Vec<(u64, u64)> = house.timeouts.iter().map(|(attempt, ms)| (attempt.task.0, *ms)).collect();
    assert_eq!(told, [(1, 7_000), (2, 7_000), (3, 7_000), (4, 7_000)]);
    house.run(true);
    assert_eq!(house.starts.values().filter(|start| start.timeout_ms == 7_000).count(), 2);
}

#[test]
fn a_worker_out_of_touch_is_not_woken_for_heartbeats_that_it_cannot_send() {
    let options = AgentOptions { lease: Some(KeepOptions::default()), ..options(1) };
    let mut agent = Agent::new(options, key(), [], &[]).unwrap();
    agent.settle().unwrap();
    let wait_us = agent.next_wake_us().unwrap();
    assert!(wait_us > 500_000, "it waits for an answer, and is woken after {wait_us} µs");
    agent.elapse(wait_us);
    agent.settle().unwrap();
    assert!(agent.is_down(), "no answer came");
    assert_eq!(agent.next_wake_us(), None, "only its shell can announce it again");
    agent.registered(WorkerId(1), &[]);
    let wait_us = agent.next_wake_us().unwrap();
    assert_eq!(wait_us, 500_000, "then the next heartbeat is due");
    agent.elapse(10_000_000);
    agent.settle().unwrap();
    assert!(agent.is_down() && !agent.has_lease());
    assert_eq!(agent.next_wake_us(), None, "a lease that has ended is over");
}

#[test]
fn what_was_given_back_and_then_assigned_again_starts_once() {
    let mut house = House::new();
    let job = house.submit(1);
    let spec = house.state.spec(TaskId(1)).unwrap().clone();
    let assignment = Assignment {
        placement: Placement { worker: WorkerId(1), tasks: TaskRange::single(TaskId(1)), epoch: Epoch(1) },
        job,
        group: TaskId(1),
        tenant: "default".into(),
        spec,
        stage: None,
        timeout_ms: 60_000,
        term: 1,
        index: 3,
    };
    let agent = &mut house.agent;
    agent.registered(WorkerId(1), &[]);
    agent.assign(&assignment);
    // The answer to this is lost, so that the attempt is assigned again when the worker announces itself.
    agent.revoke(&[AttemptId { task: TaskId(1), epoch: Epoch(1) }]);
    agent.assign(&assignment);
    agent.settle().unwrap();
    let starts = agent.outputs().filter(|output| matches!(output, Output::Execute(_))).count();
    assert_eq!(starts, 1);
}

/// The first answer may have been lost: without a second one the attempt would be this worker's for ever, and never run.
#[test]
fn what_was_given_back_is_given_back_again_whenever_it_is_asked_for() {
    let mut house = House::new();
    let assignment = |job, spec, number| Assignment {
        placement: Placement {
            worker: WorkerId(1),
            tasks: TaskRange::single(TaskId(number)),
            epoch: Epoch(1),
        },
        job,
        group: TaskId(1),
        tenant: "default".into(),
        spec,
        stage: None,
        timeout_ms: 60_000,
        term: 1,
        index: 3,
    };
    let job = house.submit(2);
    let spec = house.state.spec(TaskId(1)).unwrap().clone();
    let attempt = |number| AttemptId { task: TaskId(number), epoch: Epoch(1) };
    let agent = &mut house.agent;
    agent.registered(WorkerId(1), &[]);
    agent.assign(&assignment(job, spec.clone(), 1));
    agent.revoke(&[attempt(1)]);
    agent.assign(&assignment(job, spec, 2));
    agent.settle().unwrap();
    let given_back = |agent: &mut Agent| -> Vec<AttemptId> {
        let revoked = agent.outputs().filter_map(|output| match output {
            Output::Send(FromWorker::Revoked(body)) => Some(body.attempts),
            _ => None,
        });
        revoked.flatten().collect()
    };
    assert_eq!(given_back(agent), [attempt(1)]);
    // The second one runs.
    agent.revoke(&[attempt(1), attempt(2)]);
    assert_eq!(given_back(agent), [attempt(1)]);
    // Its result is on its way.
    agent.finished(attempt(2), result(Outcome::Exited(0)), USAGE);
    agent.revoke(&[attempt(2)]);
    assert_eq!(given_back(agent), []);
}

#[test]
fn a_worker_is_not_woken_for_what_it_cannot_report_yet() {
    let mut house = House::new();
    house.submit(1);
    house.turn();
    let planned = plan(&house.state, 1);
    house.propose(Command::Plan(planned)).unwrap();
    house.turn();
    assert_eq!(house.running.len(), 1);
    let wait_us = house.agent.next_wake_us().unwrap();
    assert_eq!(wait_us, 20_000, "then it is to say that the attempt runs");
    house.agent.unavailable();
    house.agent.elapse(wait_us);
    house.agent.settle().unwrap();
    assert_eq!(house.agent.next_wake_us(), None, "without contact nothing can be said");
    house.agent.finished(house.running[0], result(Outcome::Exited(0)), USAGE);
    house.agent.settle().unwrap();
    let persists = house.agent.outputs().any(|output| matches!(output, Output::Persist(_)));
    assert!(persists, "a result becomes durable all the same");
    house.agent.elapse(60_000);
    house.agent.settle().unwrap();
    assert_eq!(house.agent.next_wake_us(), None, "while it is being written, nothing is due");
}
