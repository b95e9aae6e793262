//! A client believes the server that its root vouches for, tells nobody else anything, and finds another server when one is away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use grey_api::{Address, Client, ClientError, RetryOptions, Trust, TrustError};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ED25519};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

type Root = CertifiedIssuer<'static, KeyPair>;

fn root() -> Root {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ED25519).unwrap()).unwrap()
}

fn trust(root: &Root) -> Trust {
    Trust::from_pem(root.pem().as_bytes()).unwrap()
}

fn acceptor(root: &Root, name: &str) -> TlsAcceptor {
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let params = CertificateParams::new([name.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, root).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        );
    let mut config = config.unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// A server that answers every request alike, and keeps the heads of those that it read.
struct Server {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(root: &Root, name: &str, (status, body): (&str, &str)) -> Server {
        let (listener, acceptor) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), acceptor(root, name));
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = heads.clone();
        let answer =
            format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                seen.lock().unwrap().push(String::from_utf8(head).unwrap());
                stream.write_all(answer.as_bytes()).await.unwrap();
                drop(stream.shutdown().await);
            }
        });
        Server { port, heads }
    }

    fn at(&self, host: &str) -> Address {
        format!("https://{host}:{}", self.port).parse().unwrap()
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

const YES: (&str, &str) = ("200 OK", "true");
const AWAY: (&str, &str) = (
    "503 Service Unavailable",
    r#"{"type":"urn:grey:error:unavailable","title":"","status":503,"code":"unavailable","detail":"no leader","retry_after_ms":1}"#,
);

fn client(address: Address) -> Client {
    Client::new(address, Some("secret".to_owned())).with_retries(None)
}

#[tokio::test]
async fn a_server_that_the_root_vouches_for_is_spoken_to_by_name_and_by_number() {
    let root = root();
    for host in ["127.0.0.1", "localhost"] {
        let server = Server::start(&root, host, YES).await;
        let client = client(server.at(host)).with_trust(trust(&root));
        assert_eq!(client.get::<Value>("/v1/cluster").await.unwrap(), Value::Bool(true));
        let head = &server.heads()[0];
        assert!(head.contains("authorization: Bearer secret\r\n"), "{head}");
        assert!(head.contains(&format!("host: {host}:{}\r\n", server.port)), "{head}");
    }
}

#[tokio::test]
async fn nobody_else_learns_of_the_request_or_the_token() {
    let (own, other) = (root(), root());
    let named = Server::start(&own, "localhost", YES).await;
    let impostor = Server::start(&other, "127.0.0.1", YES).await;
    for (server, trust) in [
        // Of another cluster; of this one, under another name; and without anything to check it against.
        (&impostor, Some(trust(&own))),
        (&named, Some(trust(&own))),
        (&named, None),
    ] {
        let client = client(server.at("127.0.0.1"));
        let client = match trust {
            Some(trust) => client.with_trust(trust),
            None => client,
        };
        let error = client.get::<Value>("/v1/cluster").await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("certificate"), "{error}");
    }
    assert_eq!((named.heads().len(), impostor.heads().len()), (0, 0));
}

#[tokio::test]
async fn when_a_server_does_not_answer_the_next_one_is_asked_and_stays() {
    let root = root();
    let server = Server::start(&root, "127.0.0.1", YES).await;
    // Nobody listens at an address that was just given back.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let dead: Address = format!("https://127.0.0.1:{free}").parse().unwrap();
    let client = client(dead.clone()).with_trust(trust(&root)).with_others(vec![server.at("127.0.0.1")]);
    assert_eq!(client.address(), &dead);
    assert_eq!(client.get::<Value>("/v1/cluster").await.unwrap(), Value::Bool(true));
    assert_eq!(client.address(), &server.at("127.0.0.1"));
}

#[tokio::test]
async fn while_a_server_says_nothing_the_next_one_is_tried_beside_it() {
    let root = root();
    let server = Server::start(&root, "127.0.0.1", YES).await;
    // The kernel takes the connection, and nobody says anything over it, as when a machine stands still.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let first: Address = format!("https://{}", silent.local_addr().unwrap()).parse().unwrap();
    let client = client(first).with_trust(trust(&root)).with_others(vec![server.at("127.0.0.1")]);
    // Well within the time that a single server has to take a connection.
    let answered = tokio::time::timeout(Duration::from_secs(2), client.get::<Value>("/v1/cluster")).await;
    assert_eq!(answered.unwrap().unwrap(), Value::Bool(true));
    assert_eq!(client.address(), &server.at("127.0.0.1"), "it stays with the one that answered");
}

#[tokio::test]
async fn when_none_answers_each_is_named_with_its_reason() {
    let free = || async { TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string() };
    let (first, second) = (free().await, free().await);
    let at = |address: &str| format!("https://{address}").parse::<Address>().unwrap();
    let client = client(at(&first)).with_trust(trust(&root())).with_others(vec![at(&second)]);
    let error = client.get::<Value>("/v1/cluster").await.unwrap_err().to_string();
    assert!(error.contains(&first) && error.contains(&second) && error.contains("refused"), "{error}");
}

#[tokio::test]
async fn when_a_server_cannot_answer_now_another_is_asked() {
    let root = root();
    let (away, there) =
        (Server::start(&root, "127.0.0.1", AWAY).await, Server::start(&root, "127.0.0.1", YES).await);
    let options = RetryOptions { first_wait: Duration::from_millis(1), ..RetryOptions::default() };
    let client = client(away.at("127.0.0.1"))
        .with_others(vec![there.at("127.0.0.1")])
        .with_trust(trust(&root))
        .with_retries(Some(options));
    assert_eq!(client.get::<Value>("/v1/cluster").await.unwrap(), Value::Bool(true));
    assert_eq!((away.heads().len(), there.heads().len()), (1, 1));
}

#[test]
fn what_is_no_root_is_refused_with_its_reason() {
    let certificate = root().pem();
    assert!(Trust::from_pem(format!("{certificate}{certificate}").as_bytes()).is_ok());
    assert!(matches!(Trust::from_pem(b""), Err(TrustError::Empty)));
    assert!(matches!(Trust::from_pem(b"no certificate"), Err(TrustError::Empty)));
    assert!(matches!(Trust::from_pem(certificate.repeat(17).as_bytes()), Err(TrustError::TooLarge)));
    let damaged = certificate.replacen("MI", "AA", 1);
    assert!(matches!(Trust::from_pem(damaged.as_bytes()), Err(TrustError::Unreadable { number: 1, .. })));
}
