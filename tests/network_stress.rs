//! The cluster under bad networks and too much load: the real servers, workers and stores on the simulator's links and disks, with every
//! checker on. Each test says what is given, what happens and what must follow, in figures; the seeds are fixed, so the figures are too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use grey_health::{Amount, BreakerState, CapacityOptions, GateOptions, Level};
use grey_replica::DoorOptions;
use grey_sim::{LinkOptions, LoadOptions, LoadReport, Scenario, ScenarioOptions, links};

/// In microseconds.
const MS: u64 = 1_000;
/// In microseconds.
const SECOND: u64 = 1_000 * MS;
/// Of a million.
const PERCENT: u64 = 10_000;
/// The longest sync of a disk whose cost does not depend on entries, in microseconds.
const SYNC_US: u64 = 800;

fn load(per_second: u64, lasts_ms: u64) -> LoadOptions {
    LoadOptions {
        per_second,
        lasts_ms,
        again_ms: 10_000,
        patience_ms: 30_000,
        attempt_us: 10 * MS,
        obeys: false,
    }
}

/// A door with room for so many proposals.
fn small_door(proposals: u64) -> DoorOptions {
    let mut gate = GateOptions::default();
    let shared = Amount { count: proposals, ..gate.capacity.shared };
    gate.capacity = CapacityOptions { shared, ..gate.capacity };
    DoorOptions { gate, ..DoorOptions::default() }
}

/// Links that lose nothing and keep the order, as connections do.
fn ordered(shortest_us: u64, longest_us: u64) -> LinkOptions {
    LinkOptions { reorder: false, ..links(shortest_us, longest_us, 0) }
}

/// Disks that take two milliseconds for each entry: a capacity of five hundred entries a second; and links of one to two milliseconds.
fn narrow(seed: u64, door: DoorOptions) -> Scenario {
    let options =
        ScenarioOptions { door, entry_us: 2 * MS, ..ScenarioOptions::new(seed, ordered(MS, 2 * MS)) };
    Scenario::start(&options).unwrap()
}

/// Submits for so long; the report, and the acknowledgements a second once a third of that is over.
fn goodput(scenario: &mut Scenario, load: LoadOptions) -> (LoadReport, u64) {
    let began_us = scenario.now_us();
    scenario.load(0, load);
    scenario.run_ms(load.lasts_ms).unwrap();
    let report = scenario.report(0);
    let from_us = began_us + load.lasts_ms * MS / 3;
    let rate = report.arrived(from_us, scenario.now_us()) * SECOND / (scenario.now_us() - from_us);
    (report, rate)
}

/// Runs to the end, and says that every server has the same state; how long it took, in milliseconds.
fn finish(scenario: &mut Scenario, servers: usize) -> u64 {
    let took_ms = scenario.finish().unwrap();
    let states: BTreeSet<_> = (0..servers).map(|server| scenario.state(server).unwrap()).collect();
    assert_eq!(states.len(), 1, "all servers agree");
    assert_eq!(scenario.jobs(0), 0, "everything that was accepted has ended");
    took_ms
}

fn percentiles(report: &LoadReport) -> String {
    let [p50, p99, p999, most] = [500, 990, 999, 1_000].map(|permille| report.latency_us(permille) / MS);
    format!("p50 {p50} ms, p99 {p99} ms, p99.9 {p999} ms, longest {most} ms")
}

#[test]
fn test_normal_network_operation() {
    // Given: links of 5 to 10 ms. When: 50 submissions a second for ten seconds.
    let mut scenario = Scenario::start(&ScenarioOptions::new(1, ordered(5 * MS, 10 * MS))).unwrap();
    let term = scenario.term(0);
    scenario.load(0, load(50, 10_000));
    scenario.run_ms(10_000).unwrap();
    let took_ms = finish(&mut scenario, 3);
    let report = scenario.report(0);
    println!("normal: {}; all ended {took_ms} ms after the last", percentiles(&report));
    // Then: each is acknowledged, after the way there and back twice, and a sync on the leader and on a follower, each of which may
    // find one under way.
    assert_eq!((report.begun, report.acknowledged.len()), (500, 500));
    assert!(report.latency_us(990) < 4 * 10 * MS + 4 * SYNC_US);
    assert_eq!(scenario.term(0), term);
    assert_eq!(scenario.present_workers(), 4);
    assert!(took_ms < 1_000);
}

#[test]
fn test_packet_loss_handling() {
    // Given: links of 10 to 60 ms, half a millisecond of disk for each entry, and clients that ask again every 70 ms, under the same key.
    let hasty = |per_second, lasts_ms| LoadOptions { again_ms: 70, ..load(per_second, lasts_ms) };
    let scenario = |loss: u64| {
        let options =
            ScenarioOptions { entry_us: MS / 2, ..ScenarioOptions::new(2, links(10 * MS, 60 * MS, loss)) };
        Scenario::start(&options).unwrap()
    };
    let rates = [200, 300, 400, 500, 600];
    let capacity =
        rates.map(|rate| goodput(&mut scenario(0), hasty(rate, 6_000)).1).into_iter().max().unwrap();
    for loss in [0, PERCENT, 10 * PERCENT] {
        // When: they submit at half the capacity.
        let mut scenario = scenario(loss);
        scenario.load(0, hasty(capacity / 2, 20_000));
        scenario.run_ms(20_000).unwrap();
        let took_ms = finish(&mut scenario, 3);
        let report = scenario.report(0);
        println!(
            "loss {:>2} %, {} a second of {capacity}: {}; {} of {} acknowledged, all ended {took_ms} ms after",
            loss / PERCENT,
            capacity / 2,
            percentiles(&report),
            report.acknowledged.len(),
            report.begun,
        );
        // Then: nearly all are acknowledged, nearly all of them soon; that nothing is lost or doubled the checkers say.
        assert!(report.acknowledged.len() as u64 * 100 >= report.begun * 99);
        assert_eq!(report.refusals(), 0);
        assert!(report.latency_us(999) < 500 * MS);
    }
}

#[test]
fn test_latency_jitter() {
    // Given: five servers on links of 10 to 60 ms. When: twenty seconds pass, with some load.
    let options = ScenarioOptions { servers: 5, ..ScenarioOptions::new(3, links(10 * MS, 60 * MS, 0)) };
    let mut scenario = Scenario::start(&options).unwrap();
    let terms: Vec<u64> = (0..5).map(|server| scenario.term(server)).collect();
    scenario.load(0, load(20, 20_000));
    for _ in 0..200 {
        scenario.run_ms(100).unwrap();
        assert_eq!(scenario.present_workers(), 4, "nobody is suspect because of jitter");
    }
    finish(&mut scenario, 5);
    let report = scenario.report(0);
    println!("jitter: {}", percentiles(&report));
    // Then: nobody else leads, and nothing takes longer than its way; the first ones go another way to whom they find leading.
    assert_eq!((0..5).map(|server| scenario.term(server)).collect::<Vec<_>>(), terms);
    assert_eq!(report.acknowledged.len() as u64, report.begun);
    assert!(report.latency_us(990) < 4 * 60 * MS + 4 * SYNC_US);
    assert!(report.latency_us(1_000) < 6 * 60 * MS + 4 * SYNC_US);
}

#[test]
fn test_network_partition() {
    // Given: five servers, and a client on each side of what is to come.
    let options = ScenarioOptions { servers: 5, ..ScenarioOptions::new(4, links(5 * MS, 20 * MS, 0)) };
    let mut scenario = Scenario::start(&options).unwrap();
    let patient = LoadOptions { again_ms: 250, ..load(40, 12_000) };
    scenario.load(0, patient);
    scenario.load(1, patient);
    scenario.run_ms(2_000).unwrap();
    let leader = scenario.leader().unwrap();
    let few = [leader, (leader + 1) % 5, scenario.client(1)];
    let mut many: Vec<usize> = (0..5).filter(|server| !few.contains(server)).collect();
    many.push(scenario.client(0));
    many.extend((0..4).map(|worker| scenario.worker(worker)));
    // When: the leader and one more are cut off, with the one client.
    let cut_us = scenario.now_us();
    scenario.cut(&few, &many);
    scenario.run_ms(8_000).unwrap();
    let heal_us = scenario.now_us();
    // Then: the minority acknowledges nothing, but for what was on its way; the majority goes on.
    assert_eq!(scenario.report(1).arrived(cut_us + 2 * 20 * MS, heal_us), 0);
    assert!(scenario.leader().is_some_and(|new| many.contains(&new)));
    let after = |(due_us, took_us): &(u64, u64)| (*due_us >= cut_us).then_some(due_us + took_us);
    let first_us = scenario.report(0).acknowledged.iter().filter_map(after).min().unwrap();
    assert!(first_us - cut_us <= 2 * SECOND);
    let steady = scenario.report(0).arrived(cut_us + 2 * SECOND, heal_us);
    assert!(steady >= 40 * 6 * 95 / 100, "{steady}");
    // And after healing everybody has answers, and all servers agree.
    scenario.heal();
    scenario.run_ms(2_000).unwrap();
    let took_ms = finish(&mut scenario, 5);
    for client in 0..2 {
        let report = scenario.report(client);
        assert_eq!((report.acknowledged.len() as u64, report.unknown), (report.begun, 0));
        println!("partition: client {client}: {}", percentiles(&report));
    }
    println!("partition: goes on after {} ms; agreed {took_ms} ms after the last", (first_us - cut_us) / MS);
}

#[test]
fn test_backpressure_propagation() {
    for (obeys, room) in [(true, 300), (false, 100)] {
        // Given: a narrow cluster, and twenty tasks that run for long.
        let mut scenario = narrow(5, small_door(room));
        scenario.load(1, LoadOptions { attempt_us: 100 * SECOND, ..load(20, 1_000) });
        scenario.run_ms(2_000).unwrap();
        let long = scenario.report(1).jobs;
        assert_eq!(long.len(), 20);
        let leader = scenario.leader().unwrap();
        // When: somebody sends more than it can take, and the twenty are cancelled meanwhile.
        scenario.load(0, LoadOptions { obeys, ..load(600, 10_000) });
        let mut highest = Level::Normal;
        for at in 0..200 {
            scenario.run_ms(50).unwrap();
            highest = highest.max(scenario.level(leader).unwrap());
            if let Some(job) = (at >= 100).then(|| long.get(at - 100)).flatten() {
                scenario.cancel(1, *job);
            }
        }
        let (report, cancels) = (scenario.report(0), scenario.report(1).cancelled);
        let slowest_us = cancels.iter().max().copied().unwrap();
        println!(
            "backpressure, obeys {obeys}: {} begun, {} refused, highest {}; {}; slowest cancel {} ms",
            report.begun,
            report.refusals(),
            highest.name(),
            percentiles(&report),
            slowest_us / MS,
        );
        // Then: who slows down when told so is never refused; who does not is refused, and told when to try again.
        let refused: Vec<u64> = report.refused.values().map(|one| one.count - one.with_retry_after).collect();
        if obeys {
            assert!(report.lowest_permille <= 500 && report.begun < 5_500);
            assert_eq!(report.refusals(), 0);
        } else {
            assert!(report.refusals() * 10 > report.begun, "a sixth is too much");
            assert_eq!(refused.iter().sum::<u64>(), 0);
            assert_eq!(highest, Level::Blocked);
        }
        assert!(highest >= Level::Warning);
        // Cancels and completions have room of their own: behind what is being written and what waits for it, never refused.
        assert_eq!(cancels.len(), 20);
        assert!(slowest_us < 2 * (room + 64) * 2 * MS);
        assert!(scenario.jobs(leader) < 1_000, "most of what was accepted has ended meanwhile");
        finish(&mut scenario, 3);
    }
}

#[test]
fn test_circuit_breaker_activation() {
    // Given: a cluster whose breakers are closed. When: a follower is cut off from the other servers for twenty seconds.
    let mut scenario = Scenario::start(&ScenarioOptions::new(6, links(MS, 5 * MS, 0))).unwrap();
    let leader = scenario.leader().unwrap();
    let (away, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let term = scenario.term(leader);
    assert_eq!(scenario.breaker(leader, away), Some(BreakerState::Closed));
    scenario.load(0, load(50, 25_000));
    scenario.run_ms(1_000).unwrap();
    scenario.cut(&[away], &[leader, other]);
    let (mut opened_ms, mut open) = (None, 0);
    for at in 0..400 {
        scenario.run_ms(50).unwrap();
        assert_eq!(scenario.breaker(leader, other), Some(BreakerState::Closed));
        assert_eq!(scenario.outbox_level(leader, away), Some(Level::Normal), "nothing gathers for it");
        if matches!(scenario.breaker(leader, away), Some(BreakerState::Open { .. })) {
            opened_ms.get_or_insert(at * 50);
            open += 1;
        }
    }
    // Then: it is soon left alone, most of the time, and the others go on as if nothing were.
    assert!(opened_ms.is_some_and(|ms| ms <= 6_000), "{opened_ms:?}");
    assert!(open >= 200, "{open} of 400");
    scenario.heal();
    let mut closed_ms = 0;
    while scenario.breaker(leader, away) != Some(BreakerState::Closed) {
        scenario.run_ms(50).unwrap();
        closed_ms += 50;
        // Open for a second and a quarter at most, then a wait of two seconds at most, then three probes.
        assert!(closed_ms <= 5_000, "it is tried again");
    }
    scenario.run_ms(4_000).unwrap();
    finish(&mut scenario, 3);
    let report = scenario.report(0);
    println!(
        "breaker: opened after {opened_ms:?} ms, open in {open} looks of 400, closed {closed_ms} ms after healing"
    );
    assert_eq!(report.acknowledged.len() as u64, report.begun);
    assert!(report.latency_us(990) < 4 * 5 * MS + 4 * SYNC_US);
    assert_eq!(scenario.term(leader), term, "nobody else leads");
}

#[test]
fn test_recovery_after_congestion() {
    // Given: a leader that was sent nearly twice what it can take for ten seconds. When: that ends.
    let mut scenario = narrow(7, DoorOptions::default());
    let leader = scenario.leader().unwrap();
    let (away, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let (report, _) = goodput(&mut scenario, load(800, 10_000));
    assert!(report.refusals() > 0 && scenario.depth(leader) > 0);
    let mut normal_ms = 0;
    while scenario.level(leader) != Some(Level::Normal) || scenario.depth(leader) > 0 {
        scenario.run_ms(50).unwrap();
        normal_ms += 50;
        // What was let in waits no longer than the door allows: half a second, and what came in the two seconds until that was seen.
        assert!(normal_ms <= 2_500);
    }
    // And then: a follower misses five seconds, and comes back.
    (0..3).for_each(|server| scenario.set_entry_cost(server, 0));
    scenario.cut(&[away], &[leader, other]);
    scenario.load(0, load(100, 12_000));
    let before = scenario.taken_bytes(leader, other);
    scenario.run_ms(5_000).unwrap();
    let missed = scenario.taken_bytes(leader, other) - before;
    let before = scenario.taken_bytes(leader, away);
    let meanwhile = scenario.taken_bytes(leader, other);
    scenario.heal();
    scenario.run_ms(7_000).unwrap();
    let (took, usual) =
        (scenario.taken_bytes(leader, away) - before, scenario.taken_bytes(leader, other) - meanwhile);
    let took_ms = finish(&mut scenario, 3);
    let report = scenario.report(0);
    println!(
        "recovery: normal after {normal_ms} ms; missed {missed} bytes, sent {took} of which {usual} are new; {}; {took_ms} ms",
        percentiles(&report)
    );
    // Then: it is sent what it missed about once, and nobody else notices.
    assert!(missed > 50_000);
    assert!(took < usual + missed * 3 / 2, "{took}");
    assert_eq!((report.acknowledged.len() as u64, report.refusals()), (report.begun, 0));
    assert!(report.latency_us(990) < 4 * 2 * MS + 4 * SYNC_US);
}

#[test]
fn test_queue_depth_monitoring() {
    // Given: room for a hundred proposals. When: the load is small, then too large, then small.
    const ROOM: usize = 100;
    let mut scenario = narrow(8, small_door(ROOM as u64));
    let leader = scenario.leader().unwrap();
    let mut phases = Vec::new();
    for rate in [50, 800, 50] {
        scenario.load(0, load(rate, 4_000));
        let seen: Vec<(usize, Level)> = (0..80)
            .map(|_| {
                scenario.run_ms(50).unwrap();
                (scenario.depth(leader), scenario.level(leader).unwrap())
            })
            .collect();
        phases.push(seen);
    }
    finish(&mut scenario, 3);
    // Then: depth and level follow the load. Reports of workers are under way beside the hundred.
    let most = phases[1].iter().map(|(depth, _)| *depth).max().unwrap();
    println!("depth: small {:?}, large up to {most}, small {:?}", phases[0].last(), phases[2].last());
    assert!(phases[0].iter().all(|(depth, level)| *depth < 10 && *level == Level::Normal));
    assert!((ROOM..=ROOM + 16).contains(&most), "{most}");
    assert!(phases[2].iter().skip(10).all(|(depth, level)| *depth < 10 && *level == Level::Normal));
    // A level ends a tenth below its beginning, so that at each there are only depths from there on.
    for (depth, level) in phases.iter().flatten() {
        let within = match level {
            Level::Normal => 0..60 + 16,
            Level::Warning => 50..80 + 16,
            Level::Critical => 70..95 + 16,
            Level::Blocked => 85..ROOM + 16,
        };
        assert!(within.contains(depth), "{depth} is {}", level.name());
    }
    let first = |level: Level| phases[1].iter().position(|(_, seen)| *seen >= level);
    assert!(first(Level::Warning).is_some() && first(Level::Warning) < first(Level::Blocked));
}

#[test]
fn test_throughput_under_stress() {
    // Given: the most that a narrow cluster acknowledges a second, at whatever rate. When: it is sent twice as much.
    let run = |per_second: u64| {
        let mut scenario = narrow(9, DoorOptions::default());
        let term = scenario.term(0);
        let (report, rate) = goodput(&mut scenario, load(per_second, 12_000));
        assert_eq!(scenario.term(0), term, "load does not look like death");
        println!(
            "throughput: {per_second} a second offered, {rate} acknowledged, {} refused; {}",
            report.refusals(),
            percentiles(&report)
        );
        finish(&mut scenario, 3);
        (scenario.report(0), rate)
    };
    let peak = [300, 400, 500, 600].map(|per_second| run(per_second).1).into_iter().max().unwrap();
    let (report, rate) = run(2 * peak);
    // Then: it does nearly as much, refuses the rest with advice, and what it accepted is neither late beyond measure nor forgotten.
    assert!(rate * 10 >= peak * 9, "{rate} of {peak}");
    assert_eq!(report.acknowledged.len() as u64 + report.refusals(), report.begun);
    assert!(report.refused.values().all(|refused| refused.with_retry_after == refused.count));
    // The target of the door's delay, the interval over which it is exceeded, and what came in meanwhile.
    assert!(report.latency_us(990) <= 4_500 * MS);
}
