//! The clusters that a user knows by name, in a file that only they read.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use grey_api::{Address, Trust, nearest};
use serde::{Deserialize, Serialize};

use super::error::CliError;
use super::root::read_bounded;

/// The name that stands for the local cluster; no context has it.
pub const LOCAL: &str = "local";
/// The most bytes of the file, and of a token's.
const LARGEST_FILE_BYTES: u64 = 4 * 1024 * 1024;
const LARGEST_TOKEN_BYTES: u64 = 4 * 1024;
/// The longest name of a context, in bytes.
const LONGEST_NAME_BYTES: usize = 64;

/// A cluster and how it is spoken to.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Its servers.
    pub addresses: Vec<String>,
    /// Whose tasks are submitted where nothing else says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The file that the token is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The cluster's root certificate, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

impl fmt::Debug for Context {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A token is for the cluster alone.
        formatter.debug_struct("Context").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// All of them.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// The one that is meant when nothing else is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// By name.
    #[serde(default, rename = "context", skip_serializing_if = "BTreeMap::is_empty")]
    pub named: BTreeMap<String, Context>,
}

impl Context {
    /// Its addresses, read.
    pub fn addresses(&self) -> Result<Vec<Address>, CliError> {
        if self.addresses.is_empty() {
            return Err(CliError::usage("it has no address"));
        }
        Ok(self.addresses.iter().map(|text| text.parse()).collect::<Result<Vec<Address>, _>>()?)
    }

    /// Its token, from the file that it is in where it is in one.
    pub fn token(&self) -> Result<Option<String>, CliError> {
        match &self.token_file {
            Some(path) => read_token(path).map(Some),
            None => Ok(self.token.clone()),
        }
    }
}

/// Reads a token: the first line of a file.
pub fn read_token(path: &Path) -> Result<String, CliError> {
    let bytes = read_bounded(path, LARGEST_TOKEN_BYTES)?;
    let text = String::from_utf8(bytes).unwrap_or_default();
    well_formed(text.trim()).ok_or_else(|| {
        CliError::usage(format!("{} holds no token: one line of visible characters", path.display()))
    })
}

/// A token, where the text is one.
pub fn well_formed(text: &str) -> Option<String> {
    let visible = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    visible.then(|| text.to_owned())
}

/// Reads a cluster's root certificate from a file. Returns the text and what it makes believed.
pub fn read_trust(path: &Path) -> Result<(String, Trust), CliError> {
    let bytes = read_bounded(path, grey_api::LARGEST_TRUST_BYTES as u64)?;
    let trust = Trust::from_pem(&bytes)
        .map_err(|error| CliError::usage(format!("{} is no root certificate: {error}", path.display())))?;
    Ok((String::from_utf8_lossy(&bytes).into_owned(), trust))
}

/// Where the file is.
pub fn file() -> Result<PathBuf, CliError> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let directory = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    let directory = directory.ok_or_else(|| {
        CliError::usage("there is no place for contexts: HOME is not set").hint("set XDG_CONFIG_HOME")
    })?;
    Ok(directory.join("grey/contexts.toml"))
}

/// Refuses what is no name of a context.
pub fn check_name(name: &str) -> Result<(), CliError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name == LOCAL {
        return Err(
            CliError::usage(format!("`{LOCAL}` is always the local cluster")).hint("choose another name")
        );
    }
    if (1..=LONGEST_NAME_BYTES).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    Err(CliError::usage(format!(
        "a context's name has 1 to {LONGEST_NAME_BYTES} letters, digits, `-`, `_` and `.`"
    )))
}

impl Contexts {
    /// Those in the user's file; none where there is no file.
    pub fn read() -> Result<Contexts, CliError> {
        match file() {
            Ok(path) => Contexts::read_from(&path),
            Err(_) => Ok(Contexts::default()),
        }
    }

    fn read_from(path: &Path) -> Result<Contexts, CliError> {
        let facts = match path.metadata() {
            Ok(facts) => facts,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Contexts::default()),
            Err(error) => return Err(CliError::io("read", path.display(), &error)),
        };
        let shown = path.display();
        if facts.permissions().mode() & 0o077 != 0 {
            let error = CliError::usage(format!("{shown} holds tokens, and others may read or write it"));
            return Err(error.hint(format!("chmod 600 {shown}")));
        }
        let text = String::from_utf8(read_bounded(path, LARGEST_FILE_BYTES)?).unwrap_or_default();
        toml::from_str(&text).map_err(|error| {
            CliError::usage(format!("{shown}: {}", error.to_string().trim_end()))
                .hint("`grey context add` writes it; a damaged one may be removed")
        })
    }

    /// Writes the user's file, whole or not at all.
    pub fn write(&self) -> Result<(), CliError> {
        self.write_to(&file()?)
    }

    fn write_to(&self, path: &Path) -> Result<(), CliError> {
        let text = toml::to_string(self).map_err(|error| CliError::failed(error.to_string()))?;
        let temporary = path.with_extension("toml.new");
        let write = || -> std::io::Result<()> {
            if let Some(directory) = path.parent() {
                std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            }
            // What an earlier command left half done may have other permissions.
            match std::fs::remove_file(&temporary) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file =
                std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)
        };
        write().map_err(|error| CliError::io("write", path.display(), &error))
    }

    /// The context of a name.
    pub fn get(&self, name: &str) -> Result<&Context, CliError> {
        self.named.get(name).ok_or_else(|| self.unknown(name))
    }

    /// That there is no context of a name.
    pub fn unknown(&self, name: &str) -> CliError {
        let shown: String = name.chars().take(LONGEST_NAME_BYTES).collect();
        let names: Vec<&str> = self.named.keys().map(String::as_str).collect();
        let error = CliError::usage(format!("there is no context `{shown}`"));
        match nearest(name, names.iter().copied()) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None if names.is_empty() => error.hint("`grey context add NAME ADDRESS --ca FILE` makes one"),
            None => error.hint(format!("there are: {}", names.join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Contexts {
        let context = Context {
            addresses: vec!["https://a:7654".to_owned()],
            token: Some("secret".to_owned()),
            ca: Some("-----BEGIN CERTIFICATE-----\n".to_owned()),
            ..Context::default()
        };
        let named = BTreeMap::from([("production".to_owned(), context)]);
        Contexts { current: Some("production".to_owned()), named }
    }

    #[test]
    fn what_is_written_is_read_again_and_is_the_user_s_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("grey/contexts.toml");
        assert!(Contexts::read_from(&path).unwrap().named.is_empty(), "no file is no context");
        example().write_to(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(path.parent().unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let read = Contexts::read_from(&path).unwrap();
        assert_eq!(read.current.as_deref(), Some("production"));
        assert_eq!(read.get("production").unwrap().token().unwrap().as_deref(), Some("secret"));
        example().write_to(&path).unwrap();
    }

    #[test]
    fn a_file_that_others_may_read_is_refused_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("contexts.toml");
        example().write_to(&path).unwrap();
        for mode in [0o640, 0o604, 0o620] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = Contexts::read_from(&path).unwrap_err();
            assert!(error.hint.unwrap().starts_with("chmod 600"), "{mode:o}");
        }
    }

    #[test]
    fn an_unknown_name_says_what_was_probably_meant() {
        let hint = |name| example().get(name).unwrap_err().hint.unwrap();
        assert_eq!(hint("prodution"), "did you mean `production`?");
        assert_eq!(hint("staging"), "there are: production");
        assert!(Contexts::default().get("a").unwrap_err().hint.unwrap().contains("context add"));
    }

    #[test]
    fn names_are_plain_and_the_local_cluster_s_is_taken() {
        for good in ["a", "prod-1.example_x", &"x".repeat(64)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for wrong in ["", "local", "a b", "ä", "a/b", &"x".repeat(65)] {
            assert!(check_name(wrong).is_err(), "{wrong}");
        }
    }
}
