//! `grey config`.

use std::path::{Path, PathBuf};

use grey_node::config::{Configuration, NodeKind};
use serde::Serialize;

use super::error::{ANSWER_IS_NO, CliError};
use super::node_config::wrong;
use super::output::Output;

/// Subcommands of `grey config`.
#[derive(clap::Subcommand)]
pub enum ConfigCommand {
    /// Check the configuration of a server or a worker; exits with 1 and says everything that is wrong
    Check {
        /// The file; the tables [server] and [worker] say what it is for
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// A configuration that is right.
#[derive(Serialize)]
struct Checked<'a> {
    file: &'a Path,
    /// What it is for.
    nodes: &'a [&'a str],
}

/// Does what a subcommand of `grey config` says.
pub fn config(command: &ConfigCommand, output: &Output) -> Result<u8, CliError> {
    let ConfigCommand::Check { file } = command;
    let checked = Configuration::read(file).and_then(|configuration| configuration.check());
    let kinds =
        checked.map_err(|error| CliError { exit_status: ANSWER_IS_NO, ..wrong(file.display(), &error) })?;
    let names: Vec<&str> = kinds.iter().copied().map(NodeKind::name).collect();
    let text = format!("{}: nothing is wrong; it is for a {}", file.display(), names.join(" and a "));
    if output.is_for_programs() {
        output.must_not_be_names()?;
        output.result(&Checked { file, nodes: &names }, || text)?;
    } else {
        output.note(&text);
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> String {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/grey.toml")).unwrap()
    }

    #[test]
    fn the_example_is_right_and_for_both_kinds() {
        let kinds = example().parse::<Configuration>().unwrap().check().unwrap();
        assert_eq!(kinds, [NodeKind::Server, NodeKind::Worker]);
    }

    #[test]
    fn the_example_has_everything_there_is_and_explains_it() {
        let text = example();
        let mut before = "";
        for line in text.lines() {
            if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
                let explained = before.starts_with('#') || key == "zone" || key == "gpu";
                assert!(explained, "nothing explains `{line}`");
            }
            before = line;
        }
        // An unknown key is answered with all that are known: each of them must be in the example.
        let mut missing = Vec::new();
        for (table, others) in [
            (&["server"][..], "token"),
            (&["server", "join"], "token"),
            (&["server", "retention"], ""),
            (&["server", "intake"], ""),
            (&["worker"], "token"),
            (&["log"], ""),
        ] {
            let mut configuration: Configuration = text.parse().unwrap();
            configuration.set(&[table, &["@@@@@@@@@@@@@@@@@@@@"]].concat(), true);
            let error = configuration.check().unwrap_err().to_string();
            let known = error.split_once("there are: ").unwrap().1.lines().next().unwrap().to_owned();
            let mut whole: &toml::Value = &text.parse::<toml::Table>().unwrap().into();
            for name in table {
                whole = &whole[*name];
            }
            for key in known.split(", ").filter(|key| *key != others) {
                if whole.get(key).is_none() {
                    missing.push(format!("{table:?} {key}"));
                }
            }
        }
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("grey.toml");
        std::fs::write(&file, "[server]\nlisten = \"0.0.0.0\"\n").unwrap();
        let output = Output::new(super::super::output::Format::Table, true);
        let error = config(&ConfigCommand::Check { file }, &output).unwrap_err();
        assert_eq!(error.exit_status, ANSWER_IS_NO);
        assert!(error.message.contains("`server.data_dir`") && error.message.contains("`server.advertise`"));
    }
}
