//! A switch between nodes, in this process: what is dialled at its ports goes on to the nodes behind them, or does not.
#![allow(dead_code, reason = "each suite uses a part of it")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long lost bytes take to be sent again, as a connection's own retransmission would.
const SENT_AGAIN: Duration = Duration::from_millis(200);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What a link does to what goes over it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// Nothing reaches the node; what it says itself gets through.
    pub cut_inwards: bool,
    /// Nothing gets through from it.
    pub cut_outwards: bool,
    /// The longest delay; each piece is late by anything up to it.
    pub jitter_ms: u64,
    /// Of a hundred pieces so many are lost, and sent again.
    pub loss_percent: u64,
}

pub struct Switch {
    ports: Vec<u16>,
    links: Vec<Arc<Mutex<Weather>>>,
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Carries bytes one way until either end is gone.
fn carry(mut from: TcpStream, mut to: TcpStream, link: &Mutex<Weather>, inwards: bool, mut chance: u64) {
    let mut bytes = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        loop {
            let weather = *link.lock().unwrap();
            if !(if inwards { weather.cut_inwards } else { weather.cut_outwards }) {
                let lost = random(&mut chance) % 100 < weather.loss_percent;
                let late = Duration::from_millis(random(&mut chance) % (weather.jitter_ms + 1));
                std::thread::sleep(late + if lost { SENT_AGAIN } else { Duration::ZERO });
                break;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        if to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
}

impl Switch {
    /// A switch in front of nodes at these ports.
    pub fn before(nodes: &[u16]) -> Switch {
        let (mut ports, mut links) = (Vec::new(), Vec::new());
        for node in nodes.iter().copied() {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            ports.push(listener.local_addr().unwrap().port());
            let link = Arc::new(Mutex::new(Weather::default()));
            links.push(link.clone());
            std::thread::spawn(move || {
                let mut chance = 0x9E37_79B9_7F4A_7C15 ^ u64::from(node);
                for dialled in listener.incoming().flatten() {
                    let Ok(reached) = TcpStream::connect(("127.0.0.1", node)) else { continue };
                    let _ = (dialled.set_nodelay(true), reached.set_nodelay(true));
                    for inwards in [true, false] {
                        let (from, to) = if inwards { (&dialled, &reached) } else { (&reached, &dialled) };
                        let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                        let (link, chance) = (link.clone(), random(&mut chance));
                        std::thread::spawn(move || carry(from, to, &link, inwards, chance));
                    }
                }
            });
        }
        Switch { ports, links }
    }

    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// From now on; `node` counts from one.
    pub fn set(&self, node: usize, weather: Weather) {
        *self.links[node - 1].lock().unwrap() = weather;
    }

    /// For all.
    pub fn set_all(&self, weather: Weather) {
        (1..=self.links.len()).for_each(|node| self.set(node, weather));
    }
}
