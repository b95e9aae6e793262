//! What a lossy network costs: latencies of acknowledged submissions at half the capacity, on links of 10 to 60 ms that lose nothing, one
//! message in a hundred and one in ten. `cargo bench --bench network`.
//!
//! Three real servers and four workers on the simulator's links and disks, in virtual time: the figures say what the protocol makes of the
//! network, whatever the machine. A disk takes half a millisecond for each entry; clients ask again every 70 ms, under the same key.
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use grey_sim::{LoadOptions, Scenario, ScenarioOptions, links};

/// In microseconds.
const MS: u64 = 1_000;
/// Seeds, whose figures are put together.
const SEEDS: [u64; 3] = [1, 2, 3];
const LASTS_MS: u64 = 20_000;

fn start(seed: u64, loss: u64) -> Scenario {
    let options =
        ScenarioOptions { entry_us: MS / 2, ..ScenarioOptions::new(seed, links(10 * MS, 60 * MS, loss)) };
    Scenario::start(&options).unwrap()
}

fn load(per_second: u64, lasts_ms: u64) -> LoadOptions {
    LoadOptions { per_second, lasts_ms, again_ms: 70, patience_ms: 30_000, attempt_us: 10 * MS, obeys: false }
}

/// The most that is acknowledged a second on links that lose nothing.
fn capacity() -> u64 {
    let rate = |per_second: u64| {
        let mut scenario = start(1, 0);
        let began_us = scenario.now_us();
        scenario.load(0, load(per_second, 6_000));
        scenario.run_ms(6_000).unwrap();
        scenario.report(0).arrived(began_us + 2_000 * MS, began_us + 6_000 * MS) / 4
    };
    [200, 300, 400, 500, 600].map(rate).into_iter().max().unwrap()
}

fn main() {
    let capacity = capacity();
    println!("{} submissions a second, half of {capacity}", capacity / 2);
    println!("loss      begun  acknowledged  p50 ms  p99 ms  p99.9 ms  longest ms");
    for percent in [0, 1, 10] {
        let (mut begun, mut all) = (0, Vec::new());
        for seed in SEEDS {
            let mut scenario = start(seed, percent * 10_000);
            scenario.load(0, load(capacity / 2, LASTS_MS));
            scenario.run_ms(LASTS_MS).unwrap();
            scenario.finish().unwrap();
            let report = scenario.report(0);
            begun += report.begun;
            all.extend(report.latencies_us(0, u64::MAX));
        }
        all.sort_unstable();
        let at = |permille: usize| {
            let rank = (all.len() * permille).div_ceil(1_000).max(1) - 1;
            all.get(rank).copied().unwrap_or(0) / MS
        };
        println!(
            "{percent:>3} %  {begun:>8}  {:>12}  {:>6}  {:>6}  {:>8}  {:>10}",
            all.len(),
            at(500),
            at(990),
            at(999),
            at(1_000),
        );
    }
}
