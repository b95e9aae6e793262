//! Requests that another server answers: the one that leads. Bodies travel both ways as they come.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use axum::response::{IntoResponse, Response};
use grey_api::{Address, ErrorCode, Problem, Trust};
use http_body_util::BodyExt;
use hyper::client::conn::http1::SendRequest;
use tokio::sync::watch;

use super::blobs;
use super::paced::NEXT_PIECE;
use super::reply::Refusal;
use crate::control::Role;
use crate::directory::Directory;
use crate::handle::Node;

/// Says that a server has passed a request on already: it goes no further, so that it cannot go round.
pub(crate) const FORWARDED: HeaderName = HeaderName::from_static("grey-forwarded");
/// Within which time the leader takes a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// When to ask again while nobody leads: an election takes about as long.
const ASK_AGAIN_MS: u64 = 500;
/// Connections that are kept for the next request.
const IDLE_CONNECTIONS: usize = 32;
/// What is about one connection, and not about the request (RFC 9110, section 7.6.1); and what the next hop says itself.
const OF_THE_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
];

/// How long the one that led before may take to answer what it was asked, once another leads.
const ANSWERS_WITHIN: Duration = Duration::from_millis(250);
/// And how long where nobody leads in its place: longer than an election takes.
const NOBODY_LEADS: Duration = Duration::from_secs(3);
/// For how long content on its way to it may stand still then: its sender may pause for as long.
const STANDS_STILL: Duration = NEXT_PIECE;

/// The way to whoever leads.
pub(crate) struct Forwarder {
    trust: Trust,
    idle: Mutex<Vec<(Address, SendRequest<Body>)>>,
}

/// Why a request was not answered by the leader.
enum Failure {
    /// It was not sent: nothing happened.
    NotSent(String),
    /// It was sent, and the answer did not come.
    NotAnswered(String),
}

fn unavailable(detail: impl Into<String>) -> Problem {
    Problem::new(ErrorCode::Unavailable, detail)
        .hint("try again in a moment; another server may answer")
        .retry_after_ms(ASK_AGAIN_MS)
}

impl Forwarder {
    /// A way to servers whose certificates lead to the cluster's root.
    pub(crate) fn new(trust: Trust) -> Forwarder {
        Forwarder { trust, idle: Mutex::new(Vec::new()) }
    }

    /// Passes a request on to the leader, and its answer back.
    pub(crate) async fn forward(&self, node: &Node, request: Request) -> Response {
        let role = *node.role.borrow();
        let leader = match leader(role, node.server, &node.directory(), request.headers()) {
            Ok(leader) => leader,
            Err(problem) => return Refusal(problem).into_response(),
        };
        let is_content = request.uri().path() == blobs::PATH;
        let may_be_repeated = is_content || request.method().is_safe();
        let (request, moves) = if is_content { watched(request) } else { (request, None) };
        let given_up = async {
            let why = leads_no_longer(node.role.clone(), role.leader).await;
            // Who led before keeps content like any other server, for as long as it is there.
            if let Some(moves) = moves {
                stands_still(moves, STANDS_STILL).await;
            }
            why
        };
        let answered = tokio::select! {
            answered = self.send(&leader, request) => answered,
            why = given_up => Err(Failure::NotAnswered(why.to_owned())),
        };
        match answered {
            Ok(response) => response,
            Err(failure) => Refusal(failed(&leader, may_be_repeated, failure)).into_response(),
        }
    }

    async fn send(&self, leader: &Address, request: Request) -> Result<Response, Failure> {
        let mut request = onward(leader, request).map_err(Failure::NotSent)?;
        if let Some(mut sender) = self.take(leader) {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(self.answered(leader, sender, response)),
                // A connection that was closed while it was idle has taken nothing.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(Failure::NotAnswered(error.into_error().to_string())),
                },
            }
        }
        let mut sender = self.connect(leader).await.map_err(Failure::NotSent)?;
        match sender.try_send_request(request).await {
            Ok(response) => Ok(self.answered(leader, sender, response)),
            Err(mut error) => {
                let unsent = error.take_message().is_some();
                let reason = error.into_error().to_string();
                Err(if unsent { Failure::NotSent(reason) } else { Failure::NotAnswered(reason) })
            }
        }
    }

    fn answered(
        &self,
        leader: &Address,
        sender: SendRequest<Body>,
        response: hyper::Response<hyper::body::Incoming>,
    ) -> Response {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(address, sender)| address == leader && !sender.is_closed());
        if idle.len() < IDLE_CONNECTIONS {
            // It is taken again only once this answer was read to its end.
            idle.push((leader.clone(), sender));
        }
        let (mut head, body) = response.into_parts();
        OF_THE_HOP.iter().for_each(|name| drop(head.headers.remove(name)));
        Response::from_parts(head, Body::new(body))
    }

    fn take(&self, leader: &Address) -> Option<SendRequest<Body>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let place = idle.iter().position(|(address, sender)| address == leader && sender.is_ready())?;
        Some(idle.swap_remove(place).1)
    }

    async fn connect(&self, leader: &Address) -> Result<SendRequest<Body>, String> {
        let opening = async {
            let stream =
                grey_api::connect(leader, Some(&self.trust)).await.map_err(|error| error.to_string())?;
            let opened = hyper::client::conn::http1::handshake(stream).await;
            let (sender, connection) = opened.map_err(|error| error.to_string())?;
            // It ends with its sender; what it fails with, the sender reports.
            tokio::spawn(async move { drop(connection.await) });
            Ok(sender)
        };
        let late = || format!("it takes no connection within {} s", CONNECT_WITHIN.as_secs());
        tokio::time::timeout(CONNECT_WITHIN, opening).await.unwrap_or_else(|_| Err(late()))
    }
}

/// Resolves, with why, a moment after another server than this one leads, or when nobody has for a while. Who led before may be gone without
/// a word, and would be waited for until the connection to it breaks; where it is there, it has answered within that time.
async fn leads_no_longer(mut role: watch::Receiver<Role>, before: u64) -> &'static str {
    loop {
        let is_another = |role: &Role| role.leads || role.leader != before;
        let changed = role.wait_for(is_another).await.is_ok();
        let somebody = role.wait_for(|role| role.leads || role.leader != 0);
        let found = tokio::time::timeout(NOBODY_LEADS, somebody).await;
        match found.map(|role| role.map(|role| is_another(&role))) {
            Err(_) => return "no server leads any more",
            Ok(Ok(true)) => {
                tokio::time::sleep(ANSWERS_WITHIN).await;
                return "another server leads now";
            }
            Ok(Ok(false)) if changed => {}
            // The node is ending, and its requests with it.
            Ok(_) => return core::future::pending().await,
        }
    }
}

/// A request of which can be seen whether its body moves.
fn watched(request: Request) -> (Request, Option<watch::Receiver<()>>) {
    let (moved, moves) = watch::channel(());
    let request = request.map(|body| {
        Body::new(body.map_frame(move |frame| {
            moved.send_replace(());
            frame
        }))
    });
    (request, Some(moves))
}

/// Resolves when a body has not moved for so long: not on its way, and not answered after its end.
async fn stands_still(mut moves: watch::Receiver<()>, longest: Duration) {
    while let Ok(moved) = tokio::time::timeout(longest, moves.changed()).await {
        if moved.is_err() {
            // It was sent to its end.
            return tokio::time::sleep(longest).await;
        }
    }
}

/// Where the leader is, for a request that was not passed on before.
fn leader(role: Role, own: u64, directory: &Directory, headers: &HeaderMap) -> Result<Address, Problem> {
    let number = role.leader;
    if headers.contains_key(FORWARDED) {
        return Err(unavailable("leadership is moving: this server was asked by another, and does not lead"));
    }
    if number == 0 || number == own {
        return Err(unavailable("no server leads at the moment, as far as this one knows"));
    }
    let place = directory.servers().find(|place| place.number == number);
    let place = place
        .ok_or_else(|| unavailable(format!("it is not known here where server {number} is, which leads")))?;
    format!("https://{}", place.address).parse().map_err(|_| {
        unavailable(format!("server {number}, which leads, has no address that could be dialled"))
    })
}

/// The request as the leader gets it.
fn onward(leader: &Address, mut request: Request) -> Result<Request, String> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let uri = path.parse::<Uri>().map_err(|error| error.to_string())?;
    let host = HeaderValue::from_str(&leader.authority()).map_err(|error| error.to_string())?;
    *request.uri_mut() = uri;
    *request.version_mut() = axum::http::Version::HTTP_11;
    let headers = request.headers_mut();
    OF_THE_HOP.iter().for_each(|name| drop(headers.remove(name)));
    headers.insert(header::HOST, host);
    headers.insert(FORWARDED, HeaderValue::from_static("1"));
    Ok(request)
}

/// What is said when the leader did not answer. Of a write that was sent nobody here knows whether it happened, which does not matter where
/// it may be repeated.
fn failed(leader: &Address, may_be_repeated: bool, failure: Failure) -> Problem {
    match failure {
        Failure::NotSent(reason) => unavailable(format!("the leader at {leader} cannot be reached: {reason}")),
        Failure::NotAnswered(reason) if may_be_repeated => {
            unavailable(format!("the connection to the leader at {leader} broke: {reason}"))
        }
        Failure::NotAnswered(reason) => Problem::new(
            ErrorCode::OutcomeUnknown,
            format!("the connection to the leader at {leader} broke after the request was sent, so it may have happened: {reason}"),
        )
        .hint("send it again under the same Idempotency-Key")
        .retry_after_ms(ASK_AGAIN_MS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use grey_proof::Digest;

    fn grey1() -> Address {
        "https://grey1.example.com:7654".parse().unwrap()
    }

    #[test]
    fn a_request_goes_to_the_leader_once_and_nowhere_while_none_is_known() {
        let row = |number: u8, address: &str| grey_core::NodeRow {
            node: Digest([number; 32]),
            public_key: [number; 32],
            tls_key: Digest([number; 32]),
            name: String::new(),
            role: grey_core::NodeRole::Server,
            server: Some(u64::from(number)),
            address: address.to_owned(),
            tier: grey_core::Tier::Software,
            serial: 1,
            evidence: Digest([0; 32]),
            certificates: Vec::new(),
            admitted_wall_ms: 0,
            standing: grey_core::NodeStanding::Admitted,
            cordoned: false,
        };
        let blocked =
            grey_core::NodeRow { standing: grey_core::NodeStanding::Blocked, ..row(3, "c.example.com:1") };
        let directory = Directory::of_nodes([row(1, "a.example.com:1"), row(2, "b.example.com:1"), blocked]);
        let (first_hop, mut second_hop) = (HeaderMap::new(), HeaderMap::new());
        second_hop.insert(FORWARDED, HeaderValue::from_static("1"));
        for (leads, headers, expected) in [
            (2, &first_hop, Some("https://b.example.com:1")),
            (2, &second_hop, None),
            (0, &first_hop, None),
            (1, &first_hop, None),
            (3, &first_hop, None),
            (9, &first_hop, None),
        ] {
            let found = leader(Role { leads: false, leader: leads }, 1, &directory, headers);
            match (found, expected) {
                (Ok(address), Some(expected)) => assert_eq!(address.to_string(), expected),
                (Err(problem), None) => {
                    assert_eq!(problem.status, 503);
                    assert!(problem.retry_after_ms.is_some());
                }
                (found, expected) => panic!("{leads}: {found:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn a_request_goes_on_as_it_is_without_what_was_said_for_the_hop() {
        let request = Request::builder()
            .method("POST")
            .uri("https://grey2.example.com/v1/tasks?name=a%20b")
            .header("authorization", "Bearer t")
            .header("idempotency-key", "k")
            .header("host", "grey2.example.com")
            .header("connection", "close")
            .header("transfer-encoding", "chunked")
            .header("expect", "100-continue")
            .body(Body::empty())
            .unwrap();
        let onward = onward(&grey1(), request).unwrap();
        assert_eq!(onward.uri(), "/v1/tasks?name=a%20b");
        let header = |name: &str| onward.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(header("authorization"), Some("Bearer t"));
        assert_eq!(header("idempotency-key"), Some("k"));
        assert_eq!(header("host"), Some("grey1.example.com:7654"));
        assert_eq!(header("grey-forwarded"), Some("1"));
        assert_eq!((header("connection"), header("transfer-encoding"), header("expect")), (None, None, None));
    }

    #[test]
    fn of_a_write_that_was_sent_nobody_says_that_it_failed() {
        let lost = || Failure::NotAnswered("reset".to_owned());
        let unsent = || Failure::NotSent("refused".to_owned());
        for (is_read, failure, code) in [
            (true, unsent(), ErrorCode::Unavailable),
            (false, unsent(), ErrorCode::Unavailable),
            (true, lost(), ErrorCode::Unavailable),
            (false, lost(), ErrorCode::OutcomeUnknown),
        ] {
            let problem = failed(&grey1(), is_read, failure);
            assert_eq!(problem.code, code);
            assert!(problem.retry_after_ms.is_some(), "whoever asked comes back");
        }
    }

    fn forwarder() -> Forwarder {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap()).unwrap();
        Forwarder::new(Trust::from_pem(root.pem().as_bytes()).unwrap())
    }

    /// A leader on the loopback interface that answers so many requests of a connection, and reads one more.
    async fn server(answers: usize) -> (Address, tokio::task::JoinHandle<usize>) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            for count in 0..=answers {
                let mut request = Vec::new();
                while !request.ends_with(b"0\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => request.push(byte),
                        Err(_) => return count,
                    }
                }
                assert!(String::from_utf8(request).unwrap().contains("body"));
                if count == answers {
                    return count;
                }
                let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
                stream.write_all(answer).await.unwrap();
            }
            answers
        });
        (address, served)
    }

    fn post() -> Request {
        let pieces = futures_util::stream::iter([Ok::<_, std::io::Error>("bo"), Ok("dy")]);
        // Small pieces of one body may arrive in one chunk each; the server looks for them together.
        let whole = futures_util::StreamExt::map(pieces, |piece| piece.map(bytes::Bytes::from));
        let body = Body::from_stream(futures_util::StreamExt::chain(
            futures_util::stream::iter([Ok(bytes::Bytes::from("body"))]),
            whole,
        ));
        Request::builder().method("POST").uri("/v1/tasks").body(body).unwrap()
    }

    #[tokio::test]
    async fn answers_come_back_and_their_connection_serves_the_next_request() {
        let ((address, served), forwarder) = (server(2).await, forwarder());
        for _ in 0..2 {
            let response = forwarder.send(&address, post()).await.ok().unwrap();
            let body = axum::body::to_bytes(response.into_body(), 16).await.unwrap();
            assert_eq!(&body[..], b"ok");
            // The connection is free again once its task has seen the end of the answer.
            while !forwarder.idle.lock().unwrap().iter().all(|(_, sender)| sender.is_ready()) {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(forwarder.idle.lock().unwrap().len(), 1);
        // The third request is read and never answered.
        let lost = forwarder.send(&address, post()).await.err().unwrap();
        assert!(matches!(lost, Failure::NotAnswered(_)));
        assert_eq!(served.await.unwrap(), 2);
    }

    #[tokio::test]
    async fn content_stands_still_when_nothing_of_it_moves_and_when_nobody_answers_after_its_end() {
        let longest = Duration::from_secs(1);
        let (piece, pieces) = tokio::sync::mpsc::channel::<Result<bytes::Bytes, std::io::Error>>(1);
        let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(pieces));
        let (request, moves) = watched(Request::new(body));
        let waiting = tokio::spawn(stands_still(moves.unwrap(), longest));
        let mut read = request.into_body().into_data_stream();
        // While it moves, it is waited for, for longer than it may stand still.
        for _ in 0..8 {
            piece.send(Ok("piece".into())).await.unwrap();
            assert_eq!(futures_util::StreamExt::next(&mut read).await.unwrap().unwrap(), "piece");
            tokio::time::sleep(longest / 7).await;
        }
        assert!(!waiting.is_finished());
        let stood_since = std::time::Instant::now();
        waiting.await.unwrap();
        assert!(stood_since.elapsed() >= longest / 2);
        let (request, moves) = watched(Request::new(Body::from("all")));
        drop(request);
        let sent_since = std::time::Instant::now();
        stands_still(moves.unwrap(), longest).await;
        assert!(sent_since.elapsed() >= longest);
    }

    #[tokio::test]
    async fn who_led_is_waited_for_until_another_leads_or_nobody_has_for_a_while() {
        let follows = |leader| Role { leads: false, leader };
        let leads = Role { leads: true, leader: 1 };
        for (then, least, why) in [
            (follows(3), ANSWERS_WITHIN, "another server leads now"),
            (leads, ANSWERS_WITHIN, "another server leads now"),
            (follows(0), NOBODY_LEADS, "no server leads any more"),
        ] {
            let (says, role) = watch::channel(follows(2));
            let waiting = tokio::spawn(leads_no_longer(role, 2));
            // That it was unknown for a moment ends nothing.
            for leader in [0, 2] {
                says.send(follows(leader)).unwrap();
                tokio::time::sleep(ANSWERS_WITHIN * 2).await;
                assert!(!waiting.is_finished(), "{leader}");
            }
            let since = std::time::Instant::now();
            says.send(then).unwrap();
            assert_eq!(waiting.await.unwrap(), why);
            assert!(since.elapsed() >= least, "{why}");
        }
    }

    #[tokio::test]
    async fn a_leader_that_is_gone_was_sent_nothing() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: Address = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        drop(listener);
        assert!(matches!(forwarder().send(&address, post()).await, Err(Failure::NotSent(_))));
    }
}
