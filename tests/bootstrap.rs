//! How a cluster comes to be: the first server founds it, others are let in, workers announce themselves, quotas hold. The real servers,
//! workers and stores run on the simulator's links and disks with every checker on; what must always hold is looked at after every single
//! thing that happens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod scenario;

use std::collections::{BTreeMap, BTreeSet};

use grey_core::{
    Answer, Bootstrap, Command, CreateTenant, Epoch, NodeStanding, RateLimit, Rejection, Resources,
    SetTenantSuspended, TaskDefaults, TenantId, Tier,
};
use grey_proof::Digest;
use grey_replica::DoorOptions;
use grey_sim::{Scenario, ScenarioOptions, Told, Work};
use scenario::*;

/// What a server of the engine asks or answers, in its own encoding: fields of variable length, by their numbers.
fn engine_message(kind: u64, from: usize, to: usize, term: u64) -> Vec<u8> {
    // The log that it speaks of is longer than anybody's.
    let (log_term, index) = (term, 1_000_000);
    let fields = [(1, kind), (2, to as u64 + 1), (3, from as u64 + 1), (4, term), (5, log_term), (6, index)];
    let mut bytes = Vec::new();
    for (field, mut value) in fields {
        bytes.push(field << 3);
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
    }
    bytes
}

/// The engine's numbers of a question for a vote, its answer, and the heartbeat of a leader.
const ASKS_FOR_VOTE: u64 = 5;
const GRANTS_VOTE: u64 = 6;
const HEARTBEAT: u64 = 8;

fn applied(scenario: &Scenario, server: usize) -> u64 {
    scenario.state(server).map_or(0, |(index, _)| index)
}

fn tenant(name: &str) -> Command {
    let resources = Resources { cpu_millicores: 500, memory_bytes: 1 << 20, disk_bytes: 0 };
    let defaults = TaskDefaults { resources, timeout_ms: 60_000, output_limit_bytes: 1 << 20, priority: 100 };
    Command::CreateTenant(CreateTenant { name: name.to_owned(), defaults, weight_milli: 1_000 })
}

#[test]
fn test_single_node_bootstrap() {
    // Given: one server, on an empty disk. When: it starts.
    let options = ScenarioOptions { servers: 1, workers: 2, clients: 1, ..ScenarioOptions::new(1, near()) };
    let mut cluster = Cluster::new(&options);
    let led_ms = cluster.until("it leads", 1_000, |now| now.leader() == Some(0));
    // Then: it leads in term 1 as soon as it has looked at its clock and written its vote and its first entry.
    println!("single: leads after {led_ms} ms");
    assert!(led_ms <= TICK_MS + 3 * SYNC_MS, "{led_ms}");
    assert_eq!(cluster.scenario.vote(0), Some((1, Some(0))));
    cluster.until("it is founded", 10 * SYNC_MS, is_founded);
    assert_eq!(voters(&cluster.scenario, 0), BTreeSet::from([0]));
    // A second founding is refused, and changes nothing.
    let before = cluster.scenario.state_of(0).unwrap().meta().clone();
    let again = Bootstrap { cluster: Digest::of(b"another"), wall_ms: 7, tenants: Vec::new() };
    assert_eq!(cluster.propose(Command::Bootstrap(again)), Err(Rejection::AlreadyFounded));
    let state = cluster.scenario.state_of(0).unwrap();
    assert_eq!((state.meta().cluster, state.meta().founded_at_ms), (before.cluster, before.founded_at_ms));
    assert_eq!(state.tenants().len(), 3);
    // When: it is killed in the middle of a load, and started again.
    cluster.run(1_000);
    cluster.scenario.load(0, load(50, 3_000, 50 * MS));
    cluster.run(1_000);
    let founded = cluster.scenario.state_of(0).unwrap().meta().cluster;
    let before = applied(&cluster.scenario, 0);
    cluster.scenario.kill(0);
    cluster.run(500);
    assert_eq!(cluster.scenario.leader(), None);
    cluster.scenario.start_again(0);
    let again_ms = cluster.until("it leads again", 1_000, |now| now.leader() == Some(0));
    // Then: it leads in the next term with everything that it had, and nothing that was acknowledged is missing.
    assert!(again_ms <= TICK_MS + 3 * SYNC_MS, "{again_ms}");
    assert_eq!(cluster.scenario.vote(0), Some((2, Some(0))));
    assert_eq!(cluster.scenario.state_of(0).unwrap().meta().cluster, founded);
    assert!(applied(&cluster.scenario, 0) >= before);
    cluster.finish();
    assert_eq!(cluster.scenario.report(0).acknowledged.len() as u64, 150);
    assert_eq!(cluster.invariants.led(), (2, Some(0)));
}

#[test]
fn test_multi_node_cluster_formation() {
    // Given: a founded cluster of one server, which leads in term 1.
    let mut cluster = Cluster::founded(&ScenarioOptions { workers: 2, ..ScenarioOptions::new(2, near()) });
    assert_eq!((cluster.leader(), cluster.scenario.term(0)), (0, 1));
    let began = cluster.invariants.without_leader;
    // Whoever has no token is not let in, and a token is good once.
    let (_, admit) = cluster.scenario.admission(1);
    assert!(matches!(cluster.propose(admit.clone()), Err(Rejection::NotAdmitted(_))));
    assert_eq!(cluster.admit(1), Some(2));
    assert!(matches!(cluster.propose(admit), Err(Rejection::NotAdmitted(_))));
    // When: the second server is let in and not started. Then: it learns, and has no vote that would be missing.
    cluster.run_and(1_000, |now| assert_eq!(voters(now, 0), BTreeSet::from([0])));
    assert_eq!(cluster.scenario.membership(0).unwrap().learners, [2]);
    // When: it starts, after two seconds of work, and the third one after two more.
    for worker in 0..2 {
        let index = cluster.scenario.worker(worker);
        assert_eq!(cluster.admit(index), None);
        cluster.scenario.start_again(index);
    }
    cluster.scenario.load(0, load(100, 8_000, 20 * MS));
    cluster.run(2_000);
    for server in [1, 2] {
        if server == 2 {
            assert_eq!(cluster.admit(2), Some(3));
            cluster.run(2_000);
        }
        let behind = applied(&cluster.scenario, 0) - applied(&cluster.scenario, server);
        assert!(behind > 300, "there is something to catch up with: {behind}");
        cluster.scenario.start_again(server);
        let took_ms = cluster.until("it votes", 3_000, |now| voters(now, 0).contains(&server));
        // Then: it votes once it has caught up: what it lacks is what came while that was decided.
        let lacks = applied(&cluster.scenario, 0) - applied(&cluster.scenario, server);
        println!(
            "formation: server {server} votes {took_ms} ms after its start, from {behind} behind to {lacks}"
        );
        assert!(lacks <= 30, "{lacks}");
        assert!(cluster.scenario.membership(0).unwrap().learners.is_empty());
    }
    // All the time the first server has led in term 1, and a majority was there, which is looked at after everything that happens.
    assert_eq!(cluster.invariants.without_leader, began);
    assert_eq!(cluster.invariants.led(), (1, Some(0)));
    // The two that joined have tried in vain to reach each other, and try again.
    cluster.run(4_000);
    assert!((0..3).all(|server| voters(&cluster.scenario, server) == BTreeSet::from([0, 1, 2])));
    // When: the first server ends. Then: the other two elect one of them, which takes the votes of both.
    cluster.scenario.kill(0);
    let took_ms = cluster.until("another one leads", 2 * LONGEST_ELECTION_MS, |now| now.leader().is_some());
    println!("formation: another one leads {took_ms} ms after the first has ended");
    assert_ne!(cluster.leader(), 0);
    cluster.scenario.start_again(0);
    cluster.finish();
    let report = cluster.scenario.report(0);
    assert_eq!(report.acknowledged.len() as u64, report.begun);
}

#[test]
fn test_leader_election_mechanics() {
    // Given: five servers that start at once.
    let options = ScenarioOptions { servers: 5, ..ScenarioOptions::new(3, near()) };
    let mut cluster = Cluster::new(&options);
    let first_ms =
        cluster.until("somebody leads", 2 * LONGEST_ELECTION_MS + TICK_MS, |now| now.leader().is_some());
    cluster.run(1_000);
    cluster.scenario.load(0, load(50, 20_000, 20 * MS));
    // When: whoever leads ends, again and again, once also while a follower has missed a second and is back at that moment.
    let mut took = vec![];
    for round in 0..6 {
        cluster.run(1_000);
        let (old, term) = (cluster.leader(), cluster.scenario.term(cluster.leader()));
        let others: Vec<usize> = (0..5).filter(|server| *server != old).collect();
        let before = others.iter().map(|server| cluster.scenario.vote(*server)).collect::<Vec<_>>();
        if round % 2 == 1 {
            let (away, rest) = (others[0], [old, others[1], others[2], others[3]]);
            cluster.scenario.cut(&[away], &rest);
            cluster.run(1_000);
            assert!(applied(&cluster.scenario, away) < applied(&cluster.scenario, old));
            cluster.scenario.heal();
        }
        cluster.scenario.kill(old);
        let took_ms = cluster.until("the next one leads", 2 * LONGEST_ELECTION_MS + 100, |now| {
            now.leader().is_some_and(|leader| now.term(leader) > term)
        });
        took.push(took_ms);
        // Then: not before the shortest time-out from the last heartbeat. That it has a majority of votes, everything that was committed,
        // and a term of its own is looked at whenever somebody begins to lead.
        assert!(took_ms >= SHORTEST_ELECTION_MS - 2 * TICK_MS, "{took_ms}");
        assert!(before.iter().flatten().all(|(before, _)| *before == term), "they followed it");
        // A vote is kept over a restart: whoever voted votes for nobody else in that term.
        let new = cluster.leader();
        let voter = others.iter().copied().find(|one| *one != new && vote_for(&cluster.scenario, *one, new));
        let voter = voter.expect("somebody else voted for it");
        let vote = cluster.scenario.vote(voter);
        cluster.scenario.kill(voter);
        cluster.scenario.start_again(voter);
        assert_eq!(cluster.scenario.vote(voter), vote);
        cluster.scenario.start_again(old);
    }
    println!("elections: the first after {first_ms} ms, then after {took:?} ms");
    // When: three of five are gone. Then: nobody leads soon after, and whoever asks for votes in vain raises no term.
    cluster.run(1_000);
    let leader = cluster.leader();
    let others: Vec<usize> = (0..5).filter(|server| *server != leader).collect();
    let (gone, left) = (&others[..3], [leader, others[3]]);
    cluster.whole = false;
    gone.iter().for_each(|server| cluster.scenario.kill(*server));
    let ended_ms = cluster.until("nobody leads", 2 * LONGEST_ELECTION_MS, |now| now.leader().is_none());
    let terms = left.map(|server| cluster.scenario.term(server));
    cluster.run_and(3_000, |now| {
        assert_eq!(now.leader(), None);
        assert_eq!(left.map(|server| now.term(server)), terms);
    });
    // And when one of them is back, somebody leads.
    cluster.scenario.start_again(gone[0]);
    let back_ms = cluster.until("somebody leads", 3 * LONGEST_ELECTION_MS, |now| now.leader().is_some());
    println!(
        "elections: without a majority nobody leads after {ended_ms} ms; with it somebody after {back_ms} ms"
    );
    cluster.whole = true;
    gone[1..].iter().for_each(|server| cluster.scenario.start_again(*server));
    cluster.finish();
    let report = cluster.scenario.report(0);
    assert_eq!(report.acknowledged.len() as u64, report.begun);
}

fn vote_for(scenario: &Scenario, voter: usize, candidate: usize) -> bool {
    scenario.vote(voter) == Some((scenario.term(candidate), Some(candidate)))
}

#[test]
fn test_reject_stale_term_votes() {
    // Given: three servers, one of which leads in a term later than the first.
    let mut cluster = Cluster::start(&ScenarioOptions::new(4, near()));
    let old = cluster.leader();
    cluster.scenario.kill(old);
    cluster.until("the next one leads", 2 * LONGEST_ELECTION_MS, |now| now.leader().is_some());
    cluster.scenario.start_again(old);
    cluster.run(1_000);
    let leader = cluster.leader();
    let term = cluster.scenario.term(leader);
    let [voter, asker] = [(leader + 1) % 3, (leader + 2) % 3];
    let asks = |term| engine_message(ASKS_FOR_VOTE, asker, voter, term);
    let seen = |cluster: &Cluster| (cluster.scenario.vote(voter), cluster.scenario.believed_leader(voter));
    let before = seen(&cluster);
    assert_eq!((before.0.unwrap().0, before.1), (term, Some(leader)));
    // When: somebody asks it for its vote in an earlier term, in this one, and, while it hears the leader, in the next one.
    for asked in [term - 1, term, term + 1] {
        cluster.scenario.deliver(asker, voter, asks(asked));
        cluster.run_and(100, |now| assert_eq!((now.vote(voter), now.believed_leader(voter)), before));
    }
    // When: it has not heard the leader for long. Then: it votes in the next term, once, and the earlier one is over.
    cluster.scenario.cut(&[voter], &[leader, asker]);
    cluster.run(LONGEST_ELECTION_MS + 2 * TICK_MS);
    cluster.scenario.deliver(asker, voter, asks(term));
    cluster.run_and(20, |now| assert_eq!(now.vote(voter), before.0));
    cluster.scenario.deliver(asker, voter, asks(term + 1));
    cluster.run(20);
    assert_eq!(cluster.scenario.vote(voter), Some((term + 1, Some(asker))));
    for stale in [asks(term), engine_message(HEARTBEAT, leader, voter, term)] {
        cluster.scenario.deliver(asker, voter, stale);
        cluster.run(20);
        assert_eq!(seen(&cluster), (Some((term + 1, Some(asker))), None));
    }
    cluster.scenario.heal();
    cluster.run(2_000);
    stale_grants_elect_nobody(&mut cluster);
    stale_leaders_commit_nothing();
}

/// Answers of an earlier election count for nothing in this one; those of this one do.
fn stale_grants_elect_nobody(cluster: &mut Cluster) {
    let old = cluster.leader();
    let term = cluster.scenario.term(old);
    cluster.scenario.kill(old);
    // The vote is given, and before it is durable and the answer can leave the link is cut.
    let pairs = [(old + 1, old + 2), (old + 2, old + 1)].map(|(one, other)| (one % 3, other % 3));
    let given = |now: &Scenario| {
        pairs.into_iter().find(|(one, other)| now.term(*one) > term && vote_for(now, *other, *one))
    };
    cluster.until("somebody is given a vote", 4 * LONGEST_ELECTION_MS, |now| given(now).is_some());
    let (candidate, voter) = given(&cluster.scenario).unwrap();
    assert_ne!(cluster.scenario.believed_leader(candidate), Some(candidate));
    cluster.scenario.cut(&[candidate], &[voter]);
    let new_term = cluster.scenario.term(candidate);
    for stale in 1..new_term {
        cluster.scenario.deliver(voter, candidate, engine_message(GRANTS_VOTE, voter, candidate, stale));
        cluster.run(10);
        assert_ne!(cluster.scenario.believed_leader(candidate), Some(candidate));
    }
    cluster.scenario.deliver(voter, candidate, engine_message(GRANTS_VOTE, voter, candidate, new_term));
    cluster.run(10);
    assert_eq!(cluster.scenario.believed_leader(candidate), Some(candidate));
    cluster.scenario.heal();
    cluster.scenario.start_again(old);
    cluster.finish();
}

/// A leader that was cut off goes on believing in its term for a moment; nothing that it takes then comes to be.
fn stale_leaders_commit_nothing() {
    let mut cluster =
        Cluster::start(&ScenarioOptions { servers: 5, workers: 0, ..ScenarioOptions::new(5, near()) });
    let old = cluster.leader();
    let (term, before) = (cluster.scenario.term(old), applied(&cluster.scenario, old));
    let rest: Vec<usize> = (0..5).filter(|server| *server != old).collect();
    cluster.whole = false;
    cluster.scenario.cut(&[old], &rest);
    let number = cluster.scenario.ask(0, old, tenant("too-late"));
    cluster.until("the others have another one", 2 * LONGEST_ELECTION_MS, |now| {
        now.leader().is_some_and(|leader| leader != old)
    });
    let new = cluster.leader();
    assert_eq!(cluster.propose(tenant("in-time")), Ok(Answer::TenantCreated { tenant: TenantId(4) }));
    assert_eq!((cluster.scenario.term(old), applied(&cluster.scenario, old)), (term, before));
    // When: it is back, with what it had written down in the old term.
    cluster.scenario.heal();
    cluster.run(1_000);
    // Then: it follows in the new term, and what nobody else had is gone: the client was told that nobody knows.
    assert_eq!(cluster.scenario.term(old), cluster.scenario.term(new));
    assert_eq!(cluster.scenario.believed_leader(old), cluster.scenario.leader());
    assert_eq!(cluster.scenario.told(0, number), Some(Told::Unknown));
    for server in 0..5 {
        let state = cluster.scenario.state_of(server).unwrap();
        let names: Vec<&str> = state.tenants().values().map(|tenant| &*tenant.name).collect();
        assert_eq!(names, ["tenant-1", "tenant-2", "tenant-3", "in-time"]);
    }
    cluster.finish();
}

/// The most tasks of a tenant that wait.
const QUEUE: u64 = 30;
/// How many a second a tenant may submit.
const RATE: u64 = 20;
/// And how many at once.
const BURST: u64 = 10;

fn with_quotas(options: ScenarioOptions) -> ScenarioOptions {
    let rate = Some(RateLimit { tasks_per_second: RATE, burst: BURST });
    ScenarioOptions { door: DoorOptions { rate, queued_tasks: QUEUE, ..DoorOptions::default() }, ..options }
}

/// No tenant's queue is ever longer than it may be, on any server.
fn assert_quotas(scenario: &Scenario, servers: usize) {
    for state in (0..servers).filter_map(|server| scenario.state_of(server)) {
        for row in state.tenants().values() {
            assert!(row.queued_tasks <= QUEUE, "{} has {} tasks that wait", row.name, row.queued_tasks);
        }
    }
}

fn refused(cluster: &mut Cluster, client: usize) -> BTreeMap<&'static str, (u64, u64)> {
    let report = cluster.scenario.report(client);
    report.refused.into_iter().map(|(code, one)| (code, (one.count, one.with_retry_after))).collect()
}

#[test]
fn test_quota_initialization() {
    // Given: a cluster with quotas, whose tenants are there from the founding on, with nothing used, and no worker.
    let options = ScenarioOptions { workers: 1, clients: 3, ..ScenarioOptions::new(6, near()) };
    let mut cluster = Cluster::new(&with_quotas(options));
    let worker = cluster.scenario.worker(0);
    cluster.scenario.kill(worker);
    cluster.until("it is founded", 2_000, is_founded);
    let state = cluster.scenario.state_of(cluster.leader()).unwrap();
    assert_eq!(state.tenants().len(), 3);
    for row in state.tenants().values() {
        let used = (row.queued_tasks, row.held_tasks, row.usage, row.keys);
        assert_eq!((row.weight_milli, row.suspended, used), (1_000, false, (0, 0, Resources::default(), 0)));
    }
    // Those of the system are made by command; a name is given once.
    for (name, number) in [("system", 4), ("default", 5)] {
        let answer = cluster.propose(tenant(name));
        assert_eq!(answer, Ok(Answer::TenantCreated { tenant: TenantId(number) }));
        assert!(matches!(cluster.propose(tenant(name)), Err(Rejection::OutOfBounds { .. })));
    }
    // When: nothing can run, one tenant submits more than may wait, at less than its rate; another one stays within both.
    cluster.scenario.load(0, load(15, 4_000, 10 * MS));
    cluster.scenario.load(1, load(5, 4_000, 10 * MS));
    cluster.run_and(4_500, |now| assert_quotas(now, 3));
    // Then: it gets what may wait and is refused the rest, and told when to try again; the other one notices nothing of it.
    let report = cluster.scenario.report(0);
    let rest = report.begun - QUEUE;
    assert_eq!((report.begun / 15, report.acknowledged.len() as u64), (4, QUEUE));
    assert_eq!(refused(&mut cluster, 0), BTreeMap::from([("queue_full", (rest, rest))]));
    assert_eq!(cluster.scenario.report(1).acknowledged.len(), 20);
    assert!(refused(&mut cluster, 1).is_empty());
    // When: a worker comes, and the first tenant submits five times as fast as it may.
    cluster.scenario.start_again(worker);
    cluster.run_and(2_000, |now| assert_quotas(now, 3));
    let began_us = cluster.scenario.now_us();
    cluster.scenario.load(0, load(5 * RATE, 3_000, 10 * MS));
    cluster.scenario.load(1, load(5, 3_000, 10 * MS));
    cluster.run_and(3_500, |now| assert_quotas(now, 3));
    // Then: in any time it gets no more than its rate and once its burst, and at least that altogether; what was refused cost nothing.
    let report = cluster.scenario.report(0);
    let mut taken: Vec<u64> = report.acknowledged.iter().map(|(due_us, _)| *due_us).collect();
    taken.sort_unstable();
    for (at, from_us) in taken.iter().enumerate() {
        for (more, to_us) in taken[at..].iter().enumerate() {
            // Two submissions may come closer to each other than they were due by what their links differ.
            let most = BURST + (to_us - from_us + LONGEST_LINK_MS * MS) * RATE / SECOND + 1;
            assert!((more as u64) < most, "{} in {} ms", more + 1, (to_us - from_us) / MS);
        }
    }
    let in_all = BURST + 3 * RATE;
    println!("quotas: {} of {} taken, {in_all} may be; since {began_us}", taken.len(), report.begun);
    assert!((in_all - 2..=in_all + 1).contains(&(taken.len() as u64)));
    let (count, with_retry_after) = refused(&mut cluster, 0)["rate_exceeded"];
    assert_eq!((count, with_retry_after), (report.begun - taken.len() as u64, count));
    assert!(refused(&mut cluster, 1).is_empty());
    // A submission that is larger than the burst never fits, and is not told to try again.
    cluster.scenario.submit(0, Work { tasks: BURST as u32 + 1, attempt_us: MS, failures: 0 });
    cluster.run(100);
    assert_eq!(refused(&mut cluster, 0)["burst_exceeded"], (1, 0));
    // Who is suspended or unknown gets nothing at all, by the log's own decision.
    let suspend =
        |suspended| Command::SetTenantSuspended(SetTenantSuspended { tenant: TenantId(3), suspended });
    assert_eq!(cluster.propose(suspend(true)), Ok(Answer::Identity));
    let work = Work { tasks: 1, attempt_us: MS, failures: 0 };
    let Some(Command::Submit(of_third)) = cluster.scenario.submission(2, work) else {
        panic!("no submission")
    };
    assert_eq!(of_third.tenant, TenantId(3));
    let answer = cluster.propose(Command::Submit(of_third.clone()));
    assert_eq!(answer, Err(Rejection::TenantSuspended(TenantId(3))));
    let of_nobody = grey_core::Submit { tenant: TenantId(99), ..of_third };
    let answer = cluster.propose(Command::Submit(of_nobody));
    assert_eq!(answer, Err(Rejection::UnknownTenant(TenantId(99))));
    assert_eq!(cluster.propose(suspend(false)), Ok(Answer::Identity));
    cluster.scenario.load(2, load(5, 1_000, 10 * MS));
    cluster.run_and(1_500, |now| assert_quotas(now, 3));
    assert_eq!(cluster.scenario.report(2).acknowledged.len(), 5);
    cluster.finish();
}

/// The longest that a worker looks for the leader, in milliseconds: two servers that do not lead are asked first, each with the way there
/// and back and a tenth of a second; then its announcement is committed.
const LONGEST_SEARCH_MS: u64 = 2 * (100 + 2 * LONGEST_LINK_MS) + 4 * LONGEST_LINK_MS + 4 * SYNC_MS;

#[test]
fn test_worker_registration() {
    // Given: three servers and four workers that start at once, each worker asking another server first.
    let mut cluster = Cluster::new(&ScenarioOptions::new(7, near()));
    cluster.until("it is founded", 2_000, is_founded);
    let mut known: BTreeMap<u32, Digest> = BTreeMap::new();
    let took_ms = cluster.until("all are there", LONGEST_SEARCH_MS, |now| {
        let state = now.leader().and_then(|leader| now.state_of(leader)).unwrap();
        // Then: each gets a number of its own and keeps it.
        for (id, row) in state.workers() {
            assert_eq!(*known.entry(id.0).or_insert(row.node), row.node);
        }
        state.workers().len() == 4
    });
    println!("registration: all are there {took_ms} ms after the founding");
    assert_eq!(known.values().collect::<BTreeSet<_>>().len(), 4);
    for worker in 0..4 {
        let (_, row) = cluster.scenario.worker_row(worker).unwrap();
        let said = (row.capacity.cpu_millicores, row.slots > 0, row.held, row.tier, row.incarnation);
        assert_eq!(said, (64_000, true, 0, Tier::Software, 1));
    }
    // When: another server leads. Then: they are known to it at once, and in its session within a search of theirs.
    cluster.scenario.load(0, load(20, 6_000, 200 * MS));
    cluster.run(1_000);
    let old = cluster.leader();
    cluster.scenario.kill(old);
    cluster.until("another one leads", 2 * LONGEST_ELECTION_MS, |now| now.leader().is_some());
    assert_eq!(cluster.scenario.state_of(cluster.leader()).unwrap().workers().len(), 4);
    cluster.scenario.start_again(old);
    cluster.run(4_000);
    assert_eq!(cluster.scenario.present_workers(), 4);
    // When: a worker with attempts under way is killed and starts again.
    cluster.finish();
    cluster.scenario.submit(1, Work { tasks: 40, attempt_us: 2_000 * MS, failures: 0 });
    cluster.run(500);
    let holds = |number: &usize| cluster.scenario.worker_row(*number).is_some_and(|(_, row)| row.held > 0);
    let number = (0..4).find(holds).expect("one has something to lose");
    let (id, before) = cluster.scenario.worker_row(number).map(|(id, row)| (id, row.clone())).unwrap();
    let (worker, held) = (cluster.scenario.worker(number), before.held);
    cluster.scenario.kill(worker);
    cluster.run(100);
    cluster.scenario.start_again(worker);
    let took_ms = cluster.until("it is back", 500, |now| {
        now.worker_row(number).is_some_and(|(_, row)| row.incarnation > before.incarnation)
    });
    // Then: it is the same worker in its next life, and what it held waits again, for other attempts.
    println!("registration: back {took_ms} ms after its start");
    let (again, row) = cluster.scenario.worker_row(number).unwrap();
    assert_eq!((again, row.incarnation), (id, before.incarnation + 1));
    cluster.finish();
    let epochs = cluster.scenario.ledger().accepted.values().map(|all| all.last().unwrap().0);
    assert_eq!(epochs.filter(|epoch| *epoch == Epoch(2)).count(), held as usize);
    workers_are_let_in();
}

/// Where nodes are let in by name, so are workers; one that is blocked gets nothing more.
fn workers_are_let_in() {
    let mut cluster = Cluster::founded(&ScenarioOptions { workers: 2, ..ScenarioOptions::new(8, near()) });
    let workers = [cluster.scenario.worker(0), cluster.scenario.worker(1)];
    // When: they start unknown. Then: they are not there, however often they ask.
    workers.iter().for_each(|worker| cluster.scenario.start_again(*worker));
    cluster.run_and(2_000, |now| assert!(now.state_of(0).unwrap().workers().is_empty()));
    for (number, worker) in workers.iter().enumerate() {
        assert_eq!(cluster.admit(*worker), None);
        cluster.until("it is there", 2_000, |now| now.worker_row(number).is_some());
    }
    // When: whichever does the work is blocked. Then: everything after that runs on the other one.
    let nodes = [0, 1].map(|worker| cluster.scenario.worker_node(worker).unwrap());
    let ran = |cluster: &Cluster, from_us: u64| -> BTreeSet<Digest> {
        let runs = cluster.scenario.ledger().runs.values();
        runs.filter(|run| run.from_us >= from_us).map(|run| run.worker).collect()
    };
    cluster.scenario.load(0, load(20, 2_000, 20 * MS));
    cluster.run(1_000);
    let busy = usize::from(ran(&cluster, 0) != BTreeSet::from([nodes[0]]));
    assert_eq!(ran(&cluster, 0), BTreeSet::from([nodes[busy]]));
    let block = cluster.scenario.standing(workers[busy], NodeStanding::Blocked);
    assert_eq!(cluster.propose(block), Ok(Answer::Identity));
    let blocked_us = cluster.scenario.now_us();
    cluster.run(1_500);
    assert_eq!(ran(&cluster, blocked_us), BTreeSet::from([nodes[1 - busy]]));
    // The two servers that were never let in are not missed.
    cluster.finish();
    assert_eq!(cluster.scenario.report(0).acknowledged.len(), 40);
}

#[test]
fn test_complete_bootstrap_workflow() {
    // 1. Nodes: one server is started; two servers and three workers wait.
    let options = ScenarioOptions { workers: 3, ..ScenarioOptions::new(9, near()) };
    // 2. It founds the cluster, and leads in term 1.
    let mut cluster = Cluster::founded(&with_quotas(options));
    assert_eq!((cluster.leader(), cluster.scenario.vote(0)), (0, Some((1, Some(0)))));
    let began = cluster.invariants.without_leader;
    // 3. Tenants.
    for name in ["system", "default"] {
        assert!(matches!(cluster.propose(tenant(name)), Ok(Answer::TenantCreated { .. })));
    }
    // 4. Servers and workers are let in, and start at once.
    for index in (1..3).chain((0..3).map(|worker| cluster.scenario.worker(worker))).collect::<Vec<_>>() {
        cluster.admit(index);
        cluster.scenario.start_again(index);
        cluster.run_and(100, |now| assert_quotas(now, 3));
    }
    // 5. All of it is there, and holds under a load that two tenants bring, one of them more than it may.
    cluster.until("all vote", 2_000, |now| voters(now, 0).len() == 3);
    cluster.until("all workers are there", 2_000, |now| now.present_workers() == 3);
    cluster.scenario.submit(1, Work { tasks: BURST as u32, attempt_us: 50 * MS, failures: 0 });
    cluster.run_and(1_000, |now| assert_quotas(now, 3));
    cluster.scenario.load(0, load(3 * RATE, 3_000, 50 * MS));
    cluster.scenario.load(1, load(RATE / 2, 3_000, 50 * MS));
    cluster.run_and(4_000, |now| assert_quotas(now, 3));
    assert_eq!(cluster.invariants.without_leader, began, "exactly one server has led all the time");
    assert_eq!(cluster.invariants.led(), (1, Some(0)));
    assert!(refused(&mut cluster, 0)["rate_exceeded"].0 > 0);
    assert!(refused(&mut cluster, 1).is_empty());
    cluster.finish();
    // And all of it is there again after everything was off.
    let before = cluster.scenario.state_of(0).unwrap().tenants().len();
    cluster.whole = false;
    (0..3).for_each(|server| cluster.scenario.kill(server));
    cluster.run(1_000);
    (0..3).for_each(|server| cluster.scenario.start_again(server));
    cluster.until("somebody leads", 2 * LONGEST_ELECTION_MS + 100, |now| now.leader().is_some());
    cluster.whole = true;
    let leader = cluster.leader();
    assert_eq!(voters(&cluster.scenario, leader).len(), 3);
    assert_eq!(cluster.scenario.state_of(leader).unwrap().tenants().len(), before);
    cluster.run(5_000);
    assert_eq!(cluster.scenario.present_workers(), 3);
    cluster.scenario.load(1, load(RATE / 2, 1_000, 50 * MS));
    cluster.run_and(1_500, |now| assert_quotas(now, 3));
    cluster.finish();
    assert_eq!(cluster.scenario.report(1).acknowledged.len() as u64, RATE / 2);
    println!("bootstrap: looked {} times", cluster.invariants.looks);
}
