//! Tenants and tokens on a real node: who sees and touches what.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Home, Ran, kill};

/// A node on the loopback interface, with tenants `red` and `blue`, a job of each, and tokens.
pub(crate) struct Site {
    pub(crate) home: Home,
    node: Child,
    url: String,
}

impl Site {
    pub(crate) fn new() -> Site {
        let home = Home::new();
        let mut node = home
            .command(&["dev", "--listen", "127.0.0.1:0", "-o", "jsonl"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(node.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap();
        let url = said["address"].as_str().unwrap().to_owned();
        for name in ["red", "blue"] {
            assert_eq!(home.json(&["tenant", "create", name, "--json"])["name"], *name);
            let ran = home.grey(&["run", "-t", name, "--", "echo", name]);
            assert_eq!(ran.status, 0, "{}", ran.errors);
        }
        Site { home, node, url }
    }

    pub(crate) fn token(&self, name: &str, role: &str, tenant: Option<&str>) -> String {
        let mut arguments = vec!["token", "create", name, "--role", role];
        arguments.extend(tenant.into_iter().flat_map(|tenant| ["-t", tenant]));
        let ran = self.home.grey(&arguments);
        assert_eq!(ran.status, 0, "{}", ran.errors);
        ran.text.trim().to_owned()
    }

    /// Sends the beginning of a request as the bearer of a token, and leaves the connection open.
    pub(crate) fn begun(&self, token: &str, request: &str, rest: &str) -> TcpStream {
        let address = self.url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let head = format!("{request} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n");
        stream.write_all(format!("{head}{rest}").as_bytes()).unwrap();
        stream
    }

    /// Runs a command as the bearer of a token.
    pub(crate) fn as_bearer(&self, token: &str, arguments: &[&str]) -> Ran {
        let mut command = self.home.command(arguments);
        command.env("GREY_ADDR", &self.url).env("GREY_TOKEN", token).env_remove("GREY_DATA");
        Ran::of(command.output().unwrap())
    }

    pub(crate) fn end(mut self) {
        kill(i32::try_from(self.node.id()).unwrap(), "INT");
        assert!(self.node.wait().unwrap().success());
    }
}

#[test]
fn a_token_of_a_tenant_sees_and_touches_what_is_the_tenant_s_and_nothing_else() {
    let site = Site::new();
    let red = site.token("red-ci", "submitter", Some("red"));
    // Red's job is j1 with t1, blue's j2 with t2.
    assert_eq!(site.as_bearer(&red, &["job", "list", "-o", "name"]).text, "j1\n");
    assert_eq!(site.as_bearer(&red, &["task", "logs", "t1"]).text, "red\n");
    for arguments in [
        &["job", "status"][..],
        &["job", "result"],
        &["job", "events"],
        &["job", "cancel"],
        &["job", "rerun", "--all"],
    ] {
        // What is blue's reads like what is nowhere.
        let told = |id: &str| {
            let ran = site.as_bearer(&red, &[arguments, &[id]].concat());
            (ran.status, ran.errors.replace(id, "JOB"))
        };
        assert_eq!(told("j2"), told("j77"), "{arguments:?}");
        assert_eq!(told("j2").0, 1, "{arguments:?}: {}", told("j2").1);
    }
    for arguments in [&["task", "status"][..], &["task", "logs"], &["task", "result"], &["task", "cancel"]] {
        let told = |id: &str| {
            let ran = site.as_bearer(&red, &[arguments, &[id]].concat());
            (ran.status, ran.errors.replace(id, "TASK"))
        };
        assert_eq!(told("t2"), told("t77"), "{arguments:?}");
        assert_eq!(told("t2").0, 1, "{arguments:?}");
    }
    // Its own work is submitted without naming the tenant, and no other can be named.
    let ran = site.as_bearer(&red, &["run", "--", "echo", "mine"]);
    assert_eq!((ran.status, ran.text.as_str()), (0, "mine\n"), "{}", ran.errors);
    let job = site.home.json(&["job", "status", "j3", "--json"]);
    assert_eq!((job["tenant"].as_str(), job["submitter"].as_str()), (Some("red"), Some("red-ci")));
    let told = |tenant: &str| {
        let ran = site.as_bearer(&red, &["run", "-t", tenant, "--", "true"]);
        (ran.status, ran.errors.replace(tenant, "TENANT"))
    };
    assert_eq!(told("blue"), told("nobody"));
    assert_eq!(told("blue").0, 125);
    assert_eq!(site.as_bearer(&red, &["tenant", "list", "-o", "name"]).text, "red\n");
    assert_eq!(site.as_bearer(&red, &["tenant", "show", "blue"]).status, 3);
    site.end();
}

#[test]
fn a_tenant_names_content_that_it_has_sent_and_no_other_s() {
    let site = Site::new();
    let (red, blue) = (site.token("r", "submitter", Some("red")), site.token("b", "submitter", Some("blue")));
    std::fs::write(site.home.path("secret.txt"), "of blue\n").unwrap();
    let ran = site.as_bearer(&blue, &["run", "-q", "--in", "secret.txt", "--", "cat", "secret.txt"]);
    assert_eq!((ran.status, ran.text.as_str()), (0, "of blue\n"), "{}", ran.errors);
    // Red knows the digest, and has not sent what it is of.
    let digest = grey_proof::Digest::of(b"of blue\n").to_string();
    let named = format!(
        "{{\"command\": [\"cat\", \"x\"], \"inputs\": [{{\"path\": \"x\", \"digest\": \"{digest}\", \"size_bytes\": 8}}]}}\n"
    );
    std::fs::write(site.home.path("tasks.jsonl"), named).unwrap();
    let ran = site.as_bearer(&red, &["submit", "tasks.jsonl"]);
    assert!(ran.status == 3 && ran.errors.contains("was not sent"), "{}", ran.errors);
    assert_eq!(site.as_bearer(&blue, &["submit", "tasks.jsonl", "--wait"]).status, 0);
    // Once it has, it may.
    let ran = site.as_bearer(&red, &["run", "-q", "--in", "secret.txt", "--", "cat", "secret.txt"]);
    assert_eq!((ran.status, ran.text.as_str()), (0, "of blue\n"), "{}", ran.errors);
    assert_eq!(site.as_bearer(&red, &["submit", "tasks.jsonl", "--wait"]).status, 0);
    site.end();
}

#[test]
fn a_role_does_what_it_is_for_and_a_token_ends_when_it_is_revoked() {
    let site = Site::new();
    let viewer = site.token("v", "viewer", Some("red"));
    let admin = site.token("a", "tenant-admin", Some("red"));
    let operator = site.token("o", "operator", None);
    let auditor = site.token("i", "auditor", None);
    let status = |token: &str, arguments: &[&str]| site.as_bearer(token, arguments).status;
    for (arguments, expected) in [
        // viewer, tenant-admin, operator, auditor
        (&["job", "list"][..], [0, 0, 0, 0]),
        (&["cluster", "status"], [3, 3, 0, 0]),
        (&["node", "list"], [3, 3, 0, 0]),
        (&["run", "-q", "--", "true"], [125, 0, 0, 125]),
        (&["token", "list"], [3, 0, 0, 3]),
        (&["tenant", "suspend", "blue"], [3, 3, 0, 3]),
        (&["tenant", "resume", "blue"], [3, 3, 0, 3]),
        (&["token", "create", "x", "--role", "operator"], [3, 3, 0, 3]),
    ] {
        let found = [&viewer, &admin, &operator, &auditor].map(|token| status(token, arguments));
        assert_eq!(found, expected, "{arguments:?}");
    }
    let refused = site.as_bearer(&viewer, &["run", "--", "true"]);
    assert!(refused.errors.contains("submitter, tenant-admin, operator"), "{}", refused.errors);
    // A tenant's admin makes tokens of the tenant, and takes them back.
    let made = site.as_bearer(&admin, &["token", "create", "made", "--role", "viewer", "--json"]);
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!((made["tenant"].as_str(), made["created_by"].as_str()), (Some("red"), Some("a")));
    let token = made["token"].as_str().unwrap();
    assert_eq!(status(token, &["job", "list"]), 0);
    let listed = site.as_bearer(&admin, &["token", "list"]).text;
    assert!(listed.contains("made") && !listed.contains("operator") && !listed.contains(token), "{listed}");
    assert_eq!(status(&admin, &["token", "revoke", &made["id"].as_str().unwrap()[..12]]), 0);
    let ran = site.as_bearer(token, &["job", "list"]);
    assert!(ran.status == 3 && ran.errors.contains("revoked"), "{}", ran.errors);
    site.end();
}

#[test]
fn a_suspended_tenant_submits_nothing_until_it_is_resumed() {
    let site = Site::new();
    let red = site.token("r", "submitter", Some("red"));
    assert_eq!(site.home.json(&["tenant", "suspend", "red", "--json"])["suspended"], true);
    let ran = site.as_bearer(&red, &["run", "--", "true"]);
    assert!(ran.status == 125 && ran.errors.contains("tenant_suspended"), "{}", ran.errors);
    assert_eq!(site.as_bearer(&red, &["job", "list", "-o", "name"]).text, "j1\n", "it sees what it has");
    assert_eq!(site.home.json(&["tenant", "resume", "red", "--json"])["suspended"], false);
    assert_eq!(site.as_bearer(&red, &["run", "-q", "--", "true"]).status, 0);
    assert_eq!(site.home.grey(&["tenant", "create", "red"]).status, 3, "the name is taken");
    assert_eq!(site.home.grey(&["tenant", "create", "Red"]).status, 3, "the name is none");
    site.end();
}
