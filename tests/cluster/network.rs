//! A network of its own for the nodes of a cluster: each in a network namespace, with a cable to one bridge. What happens to a cable happens
//! to packets, so that connections stall as they do between machines, and nothing tells either end.
#![allow(dead_code, reason = "each suite uses a part of it")]

use std::collections::BTreeMap;
use std::process::Command;

use crate::machine::within;

/// The nodes there is room for, and the last byte of each one's address.
const NODES: [(&str, u8); 5] = [("s1", 1), ("s2", 2), ("s3", 3), ("w1", 11), ("w2", 12)];
/// The last byte of the address of whoever runs the cluster.
const OPERATOR: u8 = 254;

pub struct Network {
    /// What the names of namespaces and links begin with: unlike those of another test that runs at the same time.
    prefix: String,
    subnet: String,
}

fn ip(arguments: &str) -> Result<(), String> {
    let ran = Command::new("ip").args(arguments.split(' ')).output().map_err(|error| error.to_string())?;
    if ran.status.success() {
        return Ok(());
    }
    Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&ran.stderr)))
}

impl Network {
    /// Lays it; what is missing where the machine does not allow one.
    pub fn lay() -> Result<Network, String> {
        let process = std::process::id();
        let (prefix, subnet) =
            (format!("g{process}"), format!("10.{}.{}", 192 + process / 256 % 32, process % 256));
        let network = Network { prefix, subnet };
        network.connect()?;
        Ok(network)
    }

    fn connect(&self) -> Result<(), String> {
        let Network { prefix, subnet } = self;
        ip(&format!("link add {prefix} type bridge"))?;
        ip(&format!("addr add {subnet}.{OPERATOR}/24 dev {prefix}"))?;
        ip(&format!("link set {prefix} up"))?;
        for (node, byte) in NODES {
            let (space, cable) = (format!("{prefix}{node}"), format!("{prefix}{node}"));
            ip(&format!("netns add {space}"))?;
            ip(&format!("link add {cable} type veth peer name eth0 netns {space}"))?;
            ip(&format!("link set {cable} master {prefix}"))?;
            ip(&format!("link set {cable} up"))?;
            ip(&format!("-n {space} link set lo up"))?;
            ip(&format!("-n {space} addr add {subnet}.{byte}/24 dev eth0"))?;
            ip(&format!("-n {space} link set eth0 up"))?;
        }
        Ok(())
    }

    pub fn address(&self, node: &str) -> String {
        let bytes: BTreeMap<&str, u8> = NODES.into();
        format!("{}.{}", self.subnet, bytes[node])
    }

    /// The same command, to be started on the machine of a node.
    pub fn enter(&self, node: &str, command: &Command) -> Command {
        within(&["ip", "netns", "exec", &format!("{}{node}", self.prefix)], command)
    }

    /// Nothing gets to a node or from it, until it is plugged in again.
    pub fn pull_cable(&self, node: &str) {
        ip(&format!("link set {}{node} down", self.prefix)).unwrap();
    }

    pub fn plug_in(&self, node: &str) {
        ip(&format!("link set {}{node} up", self.prefix)).unwrap();
    }

    fn for_others(&self, node: &str, what: &str) {
        for (other, _) in NODES.into_iter().filter(|(other, _)| *other != node) {
            ip(&format!("-n {}{node} route {what} blackhole {}/32", self.prefix, self.address(other)))
                .unwrap();
        }
    }

    /// What a node sends to other nodes is lost; what they send gets to it.
    pub fn mute(&self, node: &str) {
        self.for_others(node, "add");
    }

    pub fn unmute(&self, node: &str) {
        self.for_others(node, "del");
    }

    fn shape(&self, node: &str, what: &str) {
        let arguments = format!("netns exec {}{node} tc qdisc {what} dev eth0 root", self.prefix);
        ip(&arguments).unwrap();
    }

    /// A node sends no more than so many kilobits a second; what does not fit a queue of a few packets is lost.
    pub fn narrow(&self, node: &str, kilobits: u32) {
        let arguments = format!(
            "netns exec {}{node} tc qdisc add dev eth0 root tbf rate {kilobits}kbit burst 16kb latency 50ms",
            self.prefix
        );
        ip(&arguments).unwrap();
    }

    pub fn widen(&self, node: &str) {
        self.shape(node, "del");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // What was not laid cannot be taken away; a cable goes with its namespace.
        for (node, _) in NODES {
            drop(ip(&format!("netns del {}{node}", self.prefix)));
        }
        drop(ip(&format!("link del {}", self.prefix)));
    }
}
