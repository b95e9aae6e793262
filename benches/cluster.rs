//! A cluster of three servers and two workers, each a process of its own, on this machine's loopback interface and disk: what it costs when
//! idle, how fast it is, and how long a loss is felt. `cargo bench --bench cluster`; `GREY_BENCH_KILLS` says how many leaders are killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench fails by panicking")]

#[path = "../tests/cluster/house.rs"]
mod house;
#[path = "../tests/cluster/machine.rs"]
mod machine;
#[path = "../tests/cluster/network.rs"]
mod network;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "../tests/cluster/switch.rs"]
mod switch;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use grey_api::{Address, Client, ClusterStatus, JobCreated, Trust};
use house::House;
use support::{runtime, wait_until};

/// Tasks of the throughput figure, and how many travel in one request.
const TASKS: usize = 200_000;
const BATCH: usize = 1_000;
/// Connections over which they are submitted.
const CONNECTIONS: usize = 4;
/// Submissions of the commit figures.
const COMMITS: usize = 5_000;
/// The rate of the paced one, a second.
const PACE: u64 = 1_000;

fn client(house: &House) -> Client {
    let mut addresses = (1..=3).map(|number| house.address(number).parse::<Address>().unwrap());
    let token = std::fs::read_to_string(house.path("operator.token")).unwrap().trim().to_owned();
    let trust = Trust::from_pem(&std::fs::read(house.path("ca.pem")).unwrap()).unwrap();
    Client::new(addresses.next().unwrap(), Some(token)).with_others(addresses.collect()).with_trust(trust)
}

fn shown(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |permille: usize| times[(times.len() * permille / 1_000).min(times.len() - 1)];
    let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1_000.0);
    println!(
        "{name}: p50 {}, p99 {}, longest {} ({} samples)",
        ms(at(500)),
        ms(at(990)),
        ms(at(1_000)),
        times.len()
    );
}

/// Under a key, so that it is sent again when a server is lost under it.
async fn submit(client: &Client) -> Duration {
    static KEYS: AtomicU64 = AtomicU64::new(0);
    let (begun, key) = (Instant::now(), KEYS.fetch_add(1, Ordering::Relaxed).to_string());
    let body = "{\"executor\":\"noop\"}";
    let created: Result<JobCreated, _> =
        client.post_bytes("/v1/tasks", "application/json", body.into(), Some(&key)).await;
    created.unwrap();
    begun.elapsed()
}

fn leader(house: &House) -> Option<String> {
    let found = house.rows(&["node", "list"]).into_iter().find(|node| node["leads"] == true)?;
    found["name"].as_str().map(str::to_owned)
}

/// The memory that a process has resident, in KiB.
fn resident_kib(process: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn idle(house: &House) {
    std::thread::sleep(Duration::from_secs(5));
    for name in ["s1", "s2", "s3", "w1", "w2"] {
        println!(
            "{name}: {:.1} MiB resident when idle",
            resident_kib(house.process_id(name)) as f64 / 1_024.0
        );
    }
}

/// Writes one after the other, and at a pace, each until it is acknowledged.
async fn paced(what: &str, client: impl Fn() -> Client, path: &'static str, body: &'static str) {
    async fn write(client: &Client, path: &str, body: &'static str) {
        let answer: Result<serde_json::Value, _> =
            client.post_bytes(path, "application/json", body.into(), None).await;
        answer.unwrap();
    }
    let one = client();
    let mut times = Vec::new();
    for _ in 0..COMMITS / 5 {
        let begun = Instant::now();
        write(&one, path, body).await;
        times.push(begun.elapsed());
    }
    shown(&format!("{what} until it is acknowledged, one at a time"), times);
    let clients: Vec<Arc<Client>> = (0..32).map(|_| Arc::new(client())).collect();
    let begun = Instant::now();
    let mut under_way = Vec::new();
    for number in 0..COMMITS {
        let due = Duration::from_micros(number as u64 * 1_000_000 / PACE);
        // A sleep of no time would last until the timer's next millisecond, and one a submission is all there is time for.
        if let Some(early) = due.checked_sub(begun.elapsed()) {
            tokio::time::sleep(early).await;
        }
        let client = clients[number % clients.len()].clone();
        // From when it was due: whoever waits for a connection waits, too.
        under_way.push(tokio::spawn(async move {
            write(&client, path, body).await;
            begun.elapsed() - due
        }));
    }
    let mut times = Vec::new();
    for one in under_way {
        times.push(one.await.unwrap());
    }
    shown(&format!("{what} until it is acknowledged, at {PACE} a second"), times);
}

async fn commits(house: &House) {
    paced("a submission", || client(house), "/v1/tasks", "{\"executor\":\"noop\"}").await;
}

/// Three members of etcd beside it, on the same disk, where this machine has it: what the same kind of write costs there, over its gateway for
/// HTTP and JSON without TLS. Its value is as long as the entry of such a submission.
struct Etcd(Vec<Child>);

impl Etcd {
    const PEERS: [u16; 3] = [23_801, 23_802, 23_803];
    const CLIENTS: [u16; 3] = [23_791, 23_792, 23_793];

    fn start(directory: &Path) -> Option<Etcd> {
        let at = |port: u16| format!("http://127.0.0.1:{port}");
        let peers: Vec<String> =
            Etcd::PEERS.iter().enumerate().map(|(number, port)| format!("m{number}={}", at(*port))).collect();
        let mut members = Vec::new();
        for (number, (peer, client)) in Etcd::PEERS.into_iter().zip(Etcd::CLIENTS).enumerate() {
            let mut command = Command::new("etcd");
            command
                .args(["--name", &format!("m{number}"), "--initial-cluster", &peers.join(",")])
                .args(["--listen-peer-urls", &at(peer), "--initial-advertise-peer-urls", &at(peer)])
                .args(["--listen-client-urls", &at(client), "--advertise-client-urls", &at(client)])
                .arg("--data-dir")
                .arg(directory.join(format!("etcd{number}")))
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            members.push(command.spawn().ok()?);
        }
        Some(Etcd(members))
    }

    fn client() -> Client {
        Client::new(format!("http://127.0.0.1:{}", Etcd::CLIENTS[0]).parse().unwrap(), None)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.0 {
            drop(member.kill());
            drop(member.wait());
        }
    }
}

async fn commits_of_etcd(house: &House) {
    let Some(_etcd) = Etcd::start(&house.path("")) else {
        println!("etcd is not installed here, and is not compared");
        return;
    };
    let begun = Instant::now();
    let body = "{\"key\":\"Zm9v\",\"value\":\"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5\"}";
    loop {
        let client = Etcd::client().with_retries(None);
        let put: Result<serde_json::Value, _> =
            client.post_bytes("/v3/kv/put", "application/json", body.into(), None).await;
        match put {
            Ok(_) => break,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    paced("a put of etcd", Etcd::client, "/v3/kv/put", body).await;
}

async fn throughput(house: &House) {
    let begun = Instant::now();
    let mut lines = Vec::new();
    for connection in 0..CONNECTIONS {
        let client = client(house);
        lines.push(tokio::spawn(async move {
            for batch in 0..TASKS / BATCH / CONNECTIONS {
                let task = |number: usize| {
                    format!("{{\"executor\":\"noop\",\"name\":\"{connection}-{batch}-{number}\"}}\n")
                };
                let body: String = (0..BATCH).map(task).collect();
                let created: Result<JobCreated, _> =
                    client.post_bytes("/v1/tasks", "application/x-ndjson", body.into(), None).await;
                created.unwrap();
            }
        }));
    }
    for line in lines {
        line.await.unwrap();
    }
    let client = client(house);
    while client.get::<ClusterStatus>("/v1/cluster").await.unwrap().jobs_live > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!(
        "noop tasks, all different, in batches of {BATCH} end to end: {:.0}/s",
        TASKS as f64 / begun.elapsed().as_secs_f64()
    );
}

async fn failovers(house: &House, kills: usize) {
    let mut times = Vec::new();
    for _ in 0..kills {
        wait_until("all servers agree", || house.states_agree(3));
        let name = leader(house).unwrap();
        let client = client(house);
        submit(&client).await;
        let killed = Instant::now();
        house.kill_9(&name);
        submit(&client).await;
        times.push(killed.elapsed());
        house.start_server(&name);
    }
    shown("a leader is killed until the next acknowledged submission", times);
}

/// A worker is killed that runs tasks, alone or with the leader: until each of them runs elsewhere. A worker that was lost once gets little
/// work for a while, so that none is killed twice; says which one it was.
async fn lost_worker(house: &House, with_leader: bool) {
    let client = client(house);
    let body = "{\"command\":[\"sleep\",\"4\"],\"count\":4,\"cpu_millicores\":1000,\"retries\":{\"infrastructure\":20}}";
    let created: JobCreated =
        client.post_bytes("/v1/tasks", "application/json", body.into(), None).await.unwrap();
    let tasks = || house.rows(&["task", "list", "--job", &created.job]);
    wait_until("they run", || tasks().iter().all(|task| task["state"] == "running"));
    let worker = tasks()[0]["worker"].clone();
    let held = tasks().iter().filter(|task| task["worker"] == worker).count();
    let nodes = house.rows(&["node", "list"]);
    let node = nodes.iter().find(|node| node["worker"] == worker).unwrap();
    let leads = leader(house).unwrap();
    if with_leader {
        house.kill_9(&leads);
    }
    let killed = Instant::now();
    house.kill_9(node["name"].as_str().unwrap());
    wait_until("they run elsewhere", || {
        let tasks = tasks();
        tasks.len() == 4
            && tasks.iter().all(|task| {
                task["state"] == "completed" || (task["state"] == "running" && task["worker"] != worker)
            })
    });
    let what = if with_leader { "a worker is killed with the leader" } else { "a worker is killed" };
    println!("{what}: its {held} task(s) ran elsewhere after {:.1} s", killed.elapsed().as_secs_f64());
    if with_leader {
        house.start_server(&leads);
    }
    wait_until("all has ended", || tasks().iter().all(|task| task["state"] == "completed"));
}

fn main() {
    let kills = std::env::var("GREY_BENCH_KILLS").map_or(30, |text| text.parse().unwrap());
    let house = House::of_three();
    house.start_worker("w1");
    house.start_worker("w2");
    wait_until("the workers are there", || house.workers() == 2);
    idle(&house);
    runtime().block_on(async {
        commits(&house).await;
        commits_of_etcd(&house).await;
        throughput(&house).await;
        for number in 3..=8 {
            house.start_worker(&format!("w{number}"));
        }
        wait_until("all workers are there", || house.workers() == 8);
        for with_leader in [false, false, true, true] {
            lost_worker(&house, with_leader).await;
        }
        failovers(&house, kills).await;
    });
}
