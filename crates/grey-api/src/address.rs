//! Where a cluster is reached.

use core::fmt;
use core::str::FromStr;
use std::path::PathBuf;

/// The port of the client API when an address names none.
pub const DEFAULT_PORT: u16 = 7654;

/// A unix socket, or a host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket in the file system; who may open it is settled by its permissions.
    Unix(PathBuf),
    /// Plain HTTP, which a node offers on the loopback interface only, together with a token.
    Tcp {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
}

/// A text that names no cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no address of a cluster: {reason}; examples: 127.0.0.1:7654, http://localhost:7654, unix:/run/grey.sock"
)]
pub struct AddressError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(formatter, "unix:{}", path.display()),
            Address::Tcp { host, port } if host.contains(':') => write!(formatter, "http://[{host}]:{port}"),
            Address::Tcp { host, port } => write!(formatter, "http://{host}:{port}"),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let wrong = |reason| AddressError { text: text.chars().take(256).collect(), reason };
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(wrong("a path must follow `unix:`"));
            }
            return Ok(Address::Unix(PathBuf::from(path)));
        }
        if text.starts_with("https://") {
            return Err(wrong("HTTPS is not offered yet"));
        }
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or_else(|| wrong("`]` is missing"))?;
                let port = rest.strip_prefix(':');
                if port.is_none() && !rest.is_empty() {
                    return Err(wrong("`:` and a port must follow `]`"));
                }
                (host, port)
            }
            None => rest.rsplit_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
        };
        if host.is_empty() || host.contains(['/', ' ', '@', '?', '#', '[', ']']) {
            return Err(wrong("the host is missing or not one"));
        }
        if host.contains(':') && !rest.starts_with('[') {
            return Err(wrong("an address with colons stands in brackets, such as [::1]:7654"));
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => port.parse().map_err(|_| wrong("the port must be a number from 1 to 65535"))?,
        };
        if port == 0 {
            return Err(wrong("the port must be a number from 1 to 65535"));
        }
        Ok(Address::Tcp { host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_users_write_them() {
        let tcp = |host: &str, port| Address::Tcp { host: host.to_owned(), port };
        for (text, address) in [
            ("127.0.0.1:1", tcp("127.0.0.1", 1)),
            ("http://localhost:7654/", tcp("localhost", 7654)),
            ("localhost", tcp("localhost", DEFAULT_PORT)),
            ("[::1]:9", tcp("::1", 9)),
            ("unix:/a b/grey.sock", Address::Unix("/a b/grey.sock".into())),
        ] {
            assert_eq!(text.parse::<Address>(), Ok(address.clone()));
            assert_eq!(address.to_string().parse::<Address>(), Ok(address));
        }
        for wrong in [
            "",
            "unix:",
            ":7",
            "a:b",
            "a:0",
            "a:65536",
            "https://a",
            "http://a/b",
            "u@h:1",
            "[::1",
            "::1:9",
            "[::1]9",
            "a]:9",
            "[[::1]:9",
            "http://^:;1]:9",
        ] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong} was taken");
        }
    }
}
