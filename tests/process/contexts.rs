//! Clusters that a user knows by name.

use std::net::TcpListener;

use crate::support::{Home, Ran};

/// An address of this machine at which nobody listens.
fn nobody() -> String {
    format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
}

/// Runs the binary with nothing but contexts to say which cluster is meant.
fn grey(home: &Home, arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
    let mut command = home.command(arguments);
    command.env_remove("GREY_DATA").env("XDG_DATA_HOME", home.path("share"));
    command.envs(variables.iter().copied());
    Ran::of(command.output().unwrap())
}

#[test]
fn a_context_is_kept_shown_without_its_token_and_forgotten() {
    let home = Home::new();
    let (first, second) = (nobody(), nobody());
    let add = ["context", "add", "lab", &first, &second, "--token", "s3cret", "--tenant", "acme"];
    assert_eq!(grey(&home, &add, &[]).status, 0);
    assert_eq!(grey(&home, &add, &[]).status, 2, "a name that is taken needs --replace");
    assert_eq!(grey(&home, &[&add[..], &["--replace", "--use"]].concat(), &[]).status, 0);
    for arguments in [&["context", "list"][..], &["context", "show"], &["context", "show", "lab", "--json"]] {
        let ran = grey(&home, arguments, &[]);
        assert_eq!(ran.status, 0, "{}", ran.errors);
        assert!(ran.text.contains(&first) && ran.text.contains(&second) && ran.text.contains("acme"));
        assert!(!ran.text.contains("s3cret"), "{}", ran.text);
    }
    assert_eq!(grey(&home, &["context", "list", "-o", "name"], &[]).text, "lab\n");
    let ran = grey(&home, &["context", "remove", "lbb"], &[]);
    assert!(ran.status == 2 && ran.errors.contains("did you mean `lab`?"), "{}", ran.errors);
    assert_eq!(grey(&home, &["context", "remove", "lab"], &[]).status, 0);
    assert_eq!(grey(&home, &["context", "list"], &[]).text, "NAME  CURRENT  TENANT  TOKEN  ADDRESSES\n");
    assert_eq!(grey(&home, &["context", "show"], &[]).status, 1);
}

#[test]
fn a_context_that_nobody_answers_for_is_never_replaced_by_the_local_cluster() {
    let home = Home::new();
    let address = nobody();
    assert_eq!(grey(&home, &["context", "add", "away", &address, "--use"], &[]).status, 0);
    let flag = ["--context", "away", "job", "list"];
    let list = ["job", "list"];
    for (arguments, variables) in [(&flag[..], &[][..]), (&list, &[("GREY_CONTEXT", "away")]), (&list, &[])] {
        let ran = grey(&home, arguments, variables);
        assert_eq!(ran.status, 4, "{}", ran.errors);
        assert!(ran.errors.contains(&address) && ran.errors.contains("away"), "{}", ran.errors);
    }
    let ran = grey(&home, &["--context", "awaz", "job", "list"], &[]);
    assert!(ran.status == 2 && ran.errors.contains("did you mean `away`?"), "{}", ran.errors);
    for (arguments, variables) in [
        (&["--context", "away", "--addr", &address, "job", "list"][..], &[][..]),
        (&list, &[("GREY_CONTEXT", "away"), ("GREY_ADDR", &address)]),
        (&["--context", "away", "down"], &[]),
    ] {
        assert_eq!(grey(&home, arguments, variables).status, 2, "{arguments:?}");
    }
    assert!(!home.path("share").exists(), "nothing local was begun");
}

#[test]
fn the_local_cluster_is_meant_where_it_is_named() {
    let home = Home::new();
    assert_eq!(grey(&home, &["context", "add", "away", &nobody(), "--use"], &[]).status, 0);
    let data = home.data().to_str().unwrap().to_owned();
    for (arguments, variables) in [
        (&["--data-dir", &data, "run", "--", "echo", "here"][..], &[("GREY_ADDR", nobody())][..]),
        (&["run", "--", "echo", "here"], &[("GREY_DATA", data.clone())]),
        (&["--context", "local", "run", "--", "echo", "here"], &[("GREY_DATA", data.clone())]),
    ] {
        let variables: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let ran = grey(&home, arguments, &variables);
        assert_eq!((ran.status, ran.text.as_str()), (0, "here\n"), "{}", ran.errors);
    }
    assert_eq!(grey(&home, &["context", "use", "local"], &[]).status, 0);
    assert_eq!(grey(&home, &["context", "show"], &[]).status, 1);
}

#[test]
fn https_needs_the_root_of_the_cluster() {
    let home = Home::new();
    for (arguments, variables) in [
        (&["context", "add", "a", "https://127.0.0.1:1"][..], &[][..]),
        (&["--addr", "https://127.0.0.1:1", "job", "list"], &[]),
        (&["--addr", "https://127.0.0.1:1", "job", "list"], &[("GREY_CA", "/dev/null")]),
        (&["--addr", "http://192.0.2.1", "job", "list"], &[]),
    ] {
        let ran = grey(&home, arguments, variables);
        assert_eq!(ran.status, 2, "{arguments:?}: {}", ran.errors);
        assert!(ran.errors.contains("certificate") || ran.errors.contains("https://"), "{}", ran.errors);
    }
}

#[test]
fn a_tenant_is_the_command_s_the_file_s_the_environment_s_or_the_context_s() {
    let home = Home::new();
    std::fs::write(
        home.path("job.toml"),
        "version = 1\ntenant = \"of-file\"\n[[task]]\nname = \"a\"\ncommand = [\"true\"]\n",
    )
    .unwrap();
    std::fs::write(home.path("tasks.jsonl"), "{\"command\": [\"true\"]}\n").unwrap();
    let data = home.data().to_str().unwrap().to_owned();
    let file = home.path("job.toml").to_str().unwrap().to_owned();
    let lines = home.path("tasks.jsonl").to_str().unwrap().to_owned();
    for (arguments, variable, tenant) in [
        (&["run", "-t", "of-flag", "--", "true"][..], "of-variable", "of-flag"),
        (&["run", "--", "true"], "of-variable", "of-variable"),
        (&["submit", &file, "-t", "of-flag"], "of-variable", "of-flag"),
        (&["submit", &file], "of-variable", "of-file"),
        (&["submit", &lines], "of-variable", "of-variable"),
    ] {
        let ran = grey(&home, arguments, &[("GREY_DATA", &data), ("GREY_TENANT", variable)]);
        assert!(ran.errors.contains(&format!("tenant `{tenant}` is unknown")), "{}", ran.errors);
    }
}
