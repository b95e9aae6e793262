//! Where a cluster is reached.

use core::fmt;
use core::str::FromStr;
use std::net::IpAddr;
use std::path::PathBuf;

/// The port of the client API when an address names none.
pub const DEFAULT_PORT: u16 = 7654;

/// The most addresses of one cluster.
const MOST_ADDRESSES: usize = 32;

/// A unix socket, or a host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket in the file system; who may open it is settled by its permissions.
    Unix(PathBuf),
    /// Plain HTTP, on the loopback interface only, together with a token.
    Http {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// HTTPS, together with a token.
    Https {
        /// Host name or address, which the server's certificate must name.
        host: String,
        /// Port.
        port: u16,
    },
}

impl Address {
    /// Whether a server there shows a certificate.
    pub fn is_https(&self) -> bool {
        matches!(self, Address::Https { .. })
    }

    /// What a request names as its host.
    pub fn authority(&self) -> String {
        match self {
            Address::Unix(_) => "localhost".to_owned(),
            Address::Http { host, port } | Address::Https { host, port } => authority(host, *port),
        }
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Whether a host is this machine's loopback interface, so that plain HTTP tells nobody else anything.
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The addresses of the servers of one cluster, separated by commas.
///
/// # Errors
/// When one cannot be read, or there are more than 32.
pub fn addresses(text: &str) -> Result<Vec<Address>, AddressError> {
    let found: Vec<Address> =
        text.split(',').take(MOST_ADDRESSES + 1).map(|part| part.trim().parse()).collect::<Result<_, _>>()?;
    if found.len() > MOST_ADDRESSES {
        let text = text.chars().take(256).collect();
        return Err(AddressError { text, reason: "a cluster has at most 32 addresses" });
    }
    Ok(found)
}

/// A text that names no cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no address of a cluster: {reason}; examples: https://grey.example.com:7654, http://127.0.0.1:7654, \
     unix:/run/grey.sock"
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
            Address::Http { host, port } => write!(formatter, "http://{}", authority(host, *port)),
            Address::Https { host, port } => write!(formatter, "https://{}", authority(host, *port)),
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
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme @ ("http" | "https"), rest)) => (Some(scheme), rest),
            Some(_) => return Err(wrong("it begins with `https://`, `http://` or `unix:`")),
            None => (None, text),
        };
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
        let host = host.to_owned();
        match (scheme, is_loopback(&host)) {
            (Some("https"), _) | (None, false) => Ok(Address::Https { host, port }),
            (_, true) => Ok(Address::Http { host, port }),
            (_, false) => Err(wrong("plain HTTP is for the loopback interface only; write `https://`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_users_write_them() {
        let http = |host: &str, port| Address::Http { host: host.to_owned(), port };
        let https = |host: &str, port| Address::Https { host: host.to_owned(), port };
        for (text, address) in [
            ("127.0.0.1:1", http("127.0.0.1", 1)),
            ("http://localhost:7654/", http("localhost", 7654)),
            ("localhost", http("localhost", DEFAULT_PORT)),
            ("[::1]:9", http("::1", 9)),
            ("https://localhost:7654", https("localhost", 7654)),
            ("https://[::1]/", https("::1", DEFAULT_PORT)),
            ("https://grey.example.com", https("grey.example.com", DEFAULT_PORT)),
            // Where plain HTTP is not spoken, nobody means it.
            ("grey.example.com:9", https("grey.example.com", 9)),
            ("10.0.0.1", https("10.0.0.1", DEFAULT_PORT)),
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
            "ftp://a",
            "https://",
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

    #[test]
    fn plain_http_leaves_this_machine_at_no_address() {
        for text in ["http://10.0.0.1", "http://grey.example.com:7654", "http://localhost.example.com"] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.reason.contains("https://"), "{text}: {error}");
        }
    }

    #[test]
    fn a_cluster_has_several_addresses() {
        let found = addresses("https://a, https://b:1,unix:/s").unwrap();
        assert_eq!(
            found.iter().map(Address::to_string).collect::<Vec<_>>(),
            ["https://a:7654", "https://b:1", "unix:/s"]
        );
        assert!(addresses("https://a,").is_err());
        assert!(addresses(&vec!["a"; MOST_ADDRESSES].join(",")).is_ok());
        assert!(addresses(&vec!["a"; MOST_ADDRESSES + 1].join(",")).is_err());
    }
}
