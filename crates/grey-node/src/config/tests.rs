//! A configuration is read as it is meant, or everything that is wrong with it is said at once.

use super::*;

const SERVER: &str = "[server]\nname = \"s1\"\ndata_dir = \"/d\"\nadvertise = \"s1.example.com\"\n";
const WORKER: &str = "[worker]\nname = \"w1\"\ndata_dir = \"/d\"\nservers = [\"s1.example.com\"]\n";

fn parse(text: &str) -> Configuration {
    text.parse().unwrap()
}

/// What is wrong, by field.
fn fields(outcome: Result<impl fmt::Debug, ConfigError>) -> Vec<String> {
    outcome.unwrap_err().0.into_iter().map(|problem| problem.field).collect()
}

#[test]
fn what_is_left_out_is_what_is_usual() {
    let server = parse(SERVER).server().unwrap();
    assert_eq!(server.listen.to_string(), "0.0.0.0:7654");
    assert_eq!(server.advertise.to_string(), "s1.example.com:7654");
    assert_eq!((server.retention, server.intake), (Retention::default(), Intake::default()));
    assert_eq!((server.join, server.metrics_listen, server.log.format), (None, None, LogFormat::Text));
    let worker = parse(WORKER).worker().unwrap();
    assert!(worker.labels.is_empty() && worker.devices.is_empty() && worker.token.is_none());
    let unnamed = parse(&SERVER.replace("name = \"s1\"\n", ""));
    assert_eq!(unnamed.server().unwrap().name, host_name());
}

#[test]
fn metrics_are_read_at_an_address_or_at_a_port_of_the_loopback_interface() {
    let with = |text: &str| parse(&format!("{SERVER}metrics_listen = \"{text}\"\n")).server();
    for (text, address) in
        [("7655", "127.0.0.1:7655"), ("10.0.0.1:7655", "10.0.0.1:7655"), ("[::1]:7655", "[::1]:7655")]
    {
        assert_eq!(with(text).unwrap().metrics_listen.unwrap().to_string(), address);
    }
    for text in ["", "0", "127.0.0.1", "127.0.0.1:0", "70000", "localhost:7655"] {
        assert_eq!(fields(with(text)), ["server.metrics_listen"], "{text}");
    }
}

#[test]
fn spans_are_told_to_a_collector_that_has_a_url_and_a_certificate_where_it_needs_one() {
    let with = |lines: &str| parse(&format!("{WORKER}[traces]\n{lines}")).worker();
    let told = |lines: &str| with(lines).unwrap().traces;
    let traces = told("endpoint = \"http://collector:4317\"").unwrap();
    assert_eq!((traces.endpoint.as_str(), traces.sampled_per_million), ("http://collector:4317", 1_000_000));
    let traces = told("endpoint = \"https://c:1\"\nca_file = \"/ca.pem\"\nratio = 0.25").unwrap();
    assert_eq!((traces.ca_file, traces.sampled_per_million), (Some(PathBuf::from("/ca.pem")), 250_000));
    assert_eq!(told("endpoint = \"http://c:1\"\nratio = 0").unwrap().sampled_per_million, 0);
    for nowhere in ["", "endpoint = \"none\"", "ratio = 0.5", "ca_file = \"/ca.pem\""] {
        assert_eq!(told(nowhere), None, "{nowhere}");
    }
    for (lines, field) in [
        ("endpoint = \"collector:4317\"", "traces.endpoint"),
        ("endpoint = \"ftp://c:1\"", "traces.endpoint"),
        ("endpoint = \"http://a:b@c:1\"", "traces.endpoint"),
        ("endpoint = \"\"", "traces.endpoint"),
        ("endpoint = \"https://c:1\"", "traces.ca_file"),
        ("ca_file = \"ca.pem\"", "traces.ca_file"),
        ("ratio = 2", "traces.ratio"),
        ("ratio = -0.1", "traces.ratio"),
        ("ratio = nan", "traces.ratio"),
        ("ratio = \"1\"", "traces.ratio"),
        ("ratios = 1.0", "traces.ratios"),
    ] {
        assert_eq!(fields(with(lines)), [field], "{lines}");
    }
}

#[test]
fn others_must_be_able_to_dial_what_a_server_advertises() {
    let with = |lines: &str| parse(&format!("[server]\ndata_dir = \"/d\"\n{lines}")).server();
    for (lines, advertised) in [
        ("listen = \"10.0.0.1\"", "10.0.0.1:7654"),
        ("listen = \"[::1]:9\"", "[::1]:9"),
        ("listen = \"10.0.0.1:9\"\nadvertise = \"a:8\"", "a:8"),
        ("advertise = \"[fd00::1]\"", "[fd00::1]:7654"),
    ] {
        assert_eq!(with(lines).unwrap().advertise.to_string(), advertised, "{lines}");
    }
    for lines in ["", "listen = \"[::]:7654\"", "advertise = \"0.0.0.0:7654\"", "advertise = \"https://a\""] {
        assert_eq!(fields(with(lines)), ["server.advertise"], "{lines}");
    }
    assert_eq!(fields(with("listen = \"10.0.0.1:0\"\nadvertise = \"a\"")), ["server.listen"]);
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let text = "[server]\nname = \"a b\"\ndata_dir = \"here\"\nlisten = 7654\nadvertize = \"a\"\n\
                [server.join]\nservers = []\ntoken = \"a\"\ntoken_file = \"/b\"\n\
                [server.retention]\nlogs = \"30\"\nresults = 30\n\
                [server.intake]\ntasks_per_second = -1\n[log]\nformat = \"xml\"\n";
    let found = fields(parse(text).server());
    for field in [
        "server.name",
        "server.data_dir",
        "server.listen",
        "server.advertise",
        "server.advertize",
        "server.join.servers",
        "server.join.token",
        "server.retention.logs",
        "server.retention.results",
        "server.intake.tasks_per_second",
        "log.format",
    ] {
        assert!(found.iter().any(|one| one == field), "{field} is not among {found:?}");
    }
    assert_eq!(found.len(), 11, "{found:?}");
}

#[test]
fn an_unknown_key_says_what_was_probably_meant() {
    for (text, says) in [
        (
            "[server]\ndata_dir = \"/d\"\nadvertise = \"a\"\nlissten = \"0.0.0.0:1\"\n",
            "did you mean `listen`?",
        ),
        ("[server]\ndata_dir = \"/d\"\nadvertise = \"a\"\n[serverr]\n", "did you mean `server`?"),
        ("[server]\ndata_dir = \"/d\"\nadvertise = \"a\"\ncolour = 1\n", "there are: name, data_dir"),
        (
            "[server]\ndata_dir = \"/d\"\nadvertise = \"a\"\n[server.retention]\nlog = \"1d\"\n",
            "did you mean `logs`?",
        ),
    ] {
        let error = parse(text).server().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn times_need_units_and_keep_to_their_bounds() {
    let with = |lines: &str| parse(&format!("{SERVER}[server.retention]\n{lines}")).server();
    assert_eq!(with("logs = \"7d\"").unwrap().retention.logs_ms, 7 * 86_400_000);
    assert!(with("logs = \"7\"").unwrap_err().to_string().contains("units: ms, s, m, h, d"));
    assert!(with("logs = \"1ms\"").unwrap_err().to_string().contains("must be from 1s"));
    assert!(with("logs = \"100d\"").unwrap_err().to_string().contains("90d"));
}

#[test]
fn the_intake_keeps_to_its_bounds() {
    let with = |lines: &str| parse(&format!("{SERVER}[server.intake]\n{lines}")).server();
    let intake = with("tasks_per_second = 5\nburst_tasks = 10\nunder_way = 7").unwrap().intake;
    let expected = Intake { tasks_per_second: Some(5), burst_tasks: Some(10), proposals: Some(7) };
    assert_eq!(intake, expected);
    for lines in ["tasks_per_second = 0", "under_way = 0", "under_way = 5000", "burst_tasks = \"many\""] {
        assert!(with(lines).is_err(), "{lines}");
    }
}

#[test]
fn a_worker_says_where_its_servers_are_and_what_it_has() {
    let text = format!(
        "{WORKER}token = \"t\"\n[worker.labels]\nzone = \"a\"\n[worker.devices]\ngpu = 2\n[log]\nformat = \"json\"\n"
    );
    let worker = parse(&text).worker().unwrap();
    assert_eq!(worker.servers[0].to_string(), "s1.example.com:7654");
    assert_eq!(worker.labels["zone"], "a");
    assert_eq!(worker.devices["gpu"], 2);
    assert_eq!(worker.log.format, LogFormat::Json);
    for (lines, field) in [
        ("[worker.devices]\ngpu = 0\n", "worker.devices.gpu"),
        ("[worker.devices]\ngpu = \"two\"\n", "worker.devices.gpu"),
        ("[worker.labels]\nzone = 1\n", "worker.labels.zone"),
        ("join = \"a\"\n", "worker.join"),
    ] {
        assert_eq!(fields(parse(&format!("{WORKER}{lines}")).worker()), [field], "{lines}");
    }
    let none = WORKER.replace("\"s1.example.com\"", "");
    assert_eq!(fields(parse(&none).worker()), ["worker.servers"]);
}

#[test]
fn a_log_has_levels_and_a_word_that_is_none_is_no_module() {
    for level in ["info", "WARN", "off", "info,grey_node=debug", "grey_node::plane=trace, warn"] {
        let text = format!("{SERVER}[log]\nlevel = \"{level}\"\n");
        assert!(parse(&text).check().is_ok(), "{level}");
    }
    for level in ["loud", "", "info,loud", "grey_node", "info,,warn"] {
        let text = format!("{SERVER}[log]\nlevel = \"{level}\"\n");
        assert_eq!(fields(parse(&text).check()), ["log.level"], "{level}");
    }
}

#[test]
fn a_file_is_for_the_nodes_whose_tables_it_has() {
    let both = format!("{SERVER}{WORKER}");
    for (text, kinds) in [
        (SERVER, vec![NodeKind::Server]),
        (WORKER, vec![NodeKind::Worker]),
        (&both, vec![NodeKind::Server, NodeKind::Worker]),
    ] {
        assert_eq!(parse(text).check().unwrap(), kinds);
    }
    assert!(parse("[log]\n").check().unwrap_err().to_string().contains("neither"));
    // What both have in common is wrong once.
    assert_eq!(fields(parse(&format!("{both}[log]\nlevels = \"info\"\n")).check()), ["log.levels"]);
    assert!("[server".parse::<Configuration>().is_err());
}

#[test]
fn what_is_said_elsewhere_takes_the_place_of_what_the_file_says() {
    let mut configuration =
        parse(&format!("{SERVER}[server.join]\nservers = [\"a\"]\ntoken_file = \"/t\"\n"));
    configuration.set(&["server", "name"], "s2");
    configuration.set(&["server", "retention", "logs"], "2d");
    configuration.unset(&["server", "join", "token_file"]);
    configuration.set(&["server", "join", "token"], "secret");
    let server = configuration.server().unwrap();
    assert_eq!((server.name.as_str(), server.retention.logs_ms), ("s2", 2 * 86_400_000));
    assert_eq!(server.join.unwrap().token, Some(TokenSource::Text("secret".to_owned())));
    let mut nothing = Configuration::default();
    nothing.set(&["worker", "data_dir"], "/d");
    nothing.set(&["worker", "servers"], vec!["a".to_owned()]);
    assert!(nothing.worker().is_ok());
}

#[test]
fn a_token_is_read_from_its_file_and_shown_by_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    let source = TokenSource::File(path.clone());
    assert!(source.read().is_err());
    for (content, token) in [("t0ken\n", Some("t0ken")), ("", None), ("two words", None), ("a\nb", None)] {
        std::fs::write(&path, content).unwrap();
        assert_eq!(source.read().ok().as_deref(), token, "{content:?}");
    }
    let join = Join { servers: Vec::new(), token: Some(TokenSource::Text("t0ken".to_owned())) };
    assert!(!format!("{join:?}").contains("t0ken"));
}
