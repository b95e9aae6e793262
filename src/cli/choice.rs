//! Which cluster is meant: what is said on the command line, then in the environment, then the current context.

use std::ffi::OsString;
use std::path::PathBuf;

use super::contexts::LOCAL;
use super::error::CliError;

/// What was said about which cluster is meant.
#[derive(Debug, Default, Clone)]
pub struct Said {
    /// `--addr`.
    pub flag_address: Option<String>,
    /// `--context`.
    pub flag_context: Option<String>,
    /// `--data-dir`.
    pub flag_data: Option<PathBuf>,
    /// `GREY_ADDR`.
    pub address: Option<String>,
    /// `GREY_CONTEXT`.
    pub context: Option<String>,
    /// `GREY_DATA`.
    pub data: Option<PathBuf>,
}

/// The cluster that is meant.
#[derive(Debug, PartialEq, Eq)]
pub enum Choice {
    /// The one at these addresses.
    Addresses(String),
    /// A context, and whether the command line names it, so that it goes before what the environment says.
    Context {
        /// Its name.
        name: String,
        /// Whether it stands on the command line.
        by_flag: bool,
    },
    /// The local cluster.
    Local,
}

impl Said {
    /// What the command line and the environment say.
    pub fn with_environment(
        flag_address: Option<String>,
        flag_context: Option<String>,
        flag_data: Option<PathBuf>,
    ) -> Result<Said, CliError> {
        let text = |name: &str| match std::env::var(name) {
            Ok(value) => Ok(Some(value)),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err(CliError::usage(format!("{name} is no text"))),
        };
        let data = std::env::var_os("GREY_DATA").filter(|value: &OsString| !value.is_empty());
        Ok(Said {
            flag_address,
            flag_context,
            flag_data: flag_data.filter(|directory| !directory.as_os_str().is_empty()),
            address: text("GREY_ADDR")?,
            context: text("GREY_CONTEXT")?,
            data: data.map(PathBuf::from),
        })
    }

    /// Where the local cluster's data lies, where that was said.
    pub fn data_dir(&self) -> Option<PathBuf> {
        self.flag_data.clone().or_else(|| self.data.clone())
    }

    /// The cluster that is meant. `current` tells the current context, and is asked only when nothing else says it.
    pub fn choice(
        &self,
        current: impl FnOnce() -> Result<Option<String>, CliError>,
    ) -> Result<Choice, CliError> {
        let named = |name: &String, by_flag| match name.as_str() {
            LOCAL => Choice::Local,
            _ => Choice::Context { name: name.clone(), by_flag },
        };
        match (&self.flag_address, &self.flag_context) {
            (Some(_), Some(_)) => {
                return Err(CliError::usage("--addr and --context both say which cluster is meant")
                    .hint("leave one out"));
            }
            (Some(address), None) => return Ok(Choice::Addresses(address.clone())),
            (None, Some(name)) => return Ok(named(name, true)),
            (None, None) => {}
        }
        if self.flag_data.is_some() {
            return Ok(Choice::Local);
        }
        match (&self.address, &self.context) {
            (Some(_), Some(_)) => {
                return Err(CliError::usage("GREY_ADDR and GREY_CONTEXT both say which cluster is meant")
                    .hint("unset one, or give --addr or --context"));
            }
            (Some(address), None) => return Ok(Choice::Addresses(address.clone())),
            (None, Some(name)) => return Ok(named(name, false)),
            (None, None) => {}
        }
        if self.data.is_some() {
            return Ok(Choice::Local);
        }
        Ok(current()?.map_or(Choice::Local, |name| named(&name, false)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_goes_before_the_environment_and_that_before_the_current_context() {
        // Flags --addr, --context, --data-dir; then GREY_ADDR, GREY_CONTEXT, GREY_DATA; then the current context.
        for (said, expected) in [
            ("a......", "address a"),
            ("a..AXDc", "address a"),
            (".x.AXDc", "flag x"),
            ("..d....", "local"),
            ("..dA.Dc", "local"),
            ("a.d....", "address a"),
            ("...A.Dc", "address A"),
            ("....XDc", "context X"),
            ("...AX..", "refused"),
            ("ax.....", "refused"),
            (".....Dc", "local"),
            ("......c", "context c"),
            (".......", "local"),
        ] {
            let mut letters = said.chars().map(|letter| (letter != '.').then(|| letter.to_string()));
            let mut next = || letters.next().unwrap();
            let said_here = Said {
                flag_address: next(),
                flag_context: next(),
                flag_data: next().map(PathBuf::from),
                address: next(),
                context: next(),
                data: next().map(PathBuf::from),
            };
            let current = next();
            let found = match said_here.choice(|| Ok(current)) {
                Ok(Choice::Addresses(text)) => format!("address {text}"),
                Ok(Choice::Context { name, by_flag: true }) => format!("flag {name}"),
                Ok(Choice::Context { name, by_flag: false }) => format!("context {name}"),
                Ok(Choice::Local) => "local".to_owned(),
                Err(_) => "refused".to_owned(),
            };
            assert_eq!(found, expected, "{said}");
        }
    }

    #[test]
    fn the_name_local_is_the_local_cluster_wherever_it_is_said() {
        let local = || Some(LOCAL.to_owned());
        let by_flag = Said { flag_context: local(), address: Some("a".to_owned()), ..Said::default() };
        let by_variable = Said { context: local(), ..Said::default() };
        for said in [by_flag, by_variable] {
            assert_eq!(said.choice(|| Ok(Some("c".to_owned()))).ok(), Some(Choice::Local));
        }
    }

    #[test]
    fn what_says_which_cluster_keeps_a_damaged_file_of_contexts_out_of_the_way() {
        let said = Said { address: Some("a".to_owned()), ..Said::default() };
        assert!(said.choice(|| Err(CliError::failed("damaged"))).is_ok());
        assert!(Said::default().choice(|| Err(CliError::failed("damaged"))).is_err());
    }
}
