//! A client over one connection: HTTP/1.1 on a unix socket, on the loopback interface, or over TLS.

use std::fs::File;
use std::io::Seek;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request, Response, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;

use crate::address::Address;
use crate::connect;
use crate::delay::{Delay, Observer, quiet};
use crate::problem::{ErrorCode, Problem};
use crate::retry::{Attempts, Repeat, Retries, RetryOptions};
use crate::trust::Trust;

/// The most bytes of a response that is read as a whole.
const LARGEST_RESPONSE_BYTES: usize = 64 * 1024 * 1024;
/// How much of a file is read at once, in bytes.
const FILE_PIECE_BYTES: u64 = 256 * 1024;
/// Within which time a node takes a connection: the only one there is, and one of several.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(3);
/// How long one of several nodes may take to accept a connection before another one is tried as well (RFC 8305, section 5).
const ANOTHER_AFTER: Duration = Duration::from_millis(250);
/// Within which time a node answers, the longest wait that it grants included; its own deadline comes before this one.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(150);

/// Why a request has no answer, or a refusal.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error("no cluster answers at {address}: {reason}")]
    Unreachable {
        /// Where.
        address: String,
        /// The system's reason.
        reason: String,
    },
    /// The connection broke before the answer was complete.
    #[error("the connection to {address} broke: {reason}")]
    Broken {
        /// Where.
        address: String,
        /// What happened.
        reason: String,
    },
    /// The cluster refused.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// The answer is not one of Grey's.
    #[error("{address} answers something that is not Grey's: {reason}")]
    Unreadable {
        /// Where.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ClientError {
    /// The refusal, where the cluster refused.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            ClientError::Refused(problem) => Some(problem),
            _ => None,
        }
    }
}

/// A body that is read piece by piece.
#[derive(Debug)]
pub struct Body {
    incoming: Incoming,
    address: String,
    attempt: Option<u32>,
}

impl Body {
    /// Which attempt of a task it is of, where it is of one.
    pub fn attempt(&self) -> Option<u32> {
        self.attempt
    }

    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.incoming.frame().await {
            let frame = frame.map_err(|error| ClientError::Broken {
                address: self.address.clone(),
                reason: error.to_string(),
            })?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

/// A connection, and the address it leads to.
#[derive(Debug)]
struct Open<B> {
    sender: SendRequest<B>,
    /// Its position among the client's addresses.
    number: usize,
}

async fn handshake<B: SendableBody>(
    address: &Address,
    trust: Option<&Trust>,
) -> Result<SendRequest<B>, String> {
    let stream = connect::connect(address, trust).await.map_err(|error| error.to_string())?;
    let opened = hyper::client::conn::http1::handshake(stream).await;
    let (sender, connection) = opened.map_err(|error| error.to_string())?;
    // It ends when the sender is dropped; what it fails with, the sender reports.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

/// Talks to one node of a cluster. Requests follow one another on one connection, which is opened when it is needed: to the
/// node that answered last, or to the next one that does.
///
/// Reads, and writes under a key, are sent again when they came to nothing, as long as the budget and the deadline of [`RetryOptions`]
/// allow; other requests only when they were refused for load. A node's retry-after is kept to. Writes under a key slow down when the
/// node says that it fills up.
#[derive(Debug)]
pub struct Client {
    address: Address,
    others: Vec<Address>,
    trust: Option<Trust>,
    token: Option<String>,
    /// The position of the address that is tried first; the others follow it in their order.
    current: AtomicUsize,
    /// The position of the one that took the last connection.
    asked: AtomicUsize,
    connection: Mutex<Option<Open<Full<Bytes>>>>,
    retries: Retries,
    observer: Option<Observer>,
}

impl Client {
    /// A client of the node at `address`. Nothing is opened yet.
    pub fn new(address: Address, token: Option<String>) -> Client {
        let retries = Retries::new(Some(RetryOptions::default()));
        Client {
            address,
            others: Vec::new(),
            trust: None,
            token,
            current: AtomicUsize::new(0),
            asked: AtomicUsize::new(0),
            connection: Mutex::new(None),
            retries,
            observer: None,
        }
    }

    /// Goes to other nodes of the same cluster when one does not answer.
    #[must_use]
    pub fn with_others(mut self, others: Vec<Address>) -> Client {
        self.others = others;
        self
    }

    /// Believes the certificates that lead to these roots. Without them no HTTPS address is spoken to.
    #[must_use]
    pub fn with_trust(mut self, trust: Trust) -> Client {
        self.trust = Some(trust);
        self
    }

    /// Sends requests again as the options say; never with `None`.
    #[must_use]
    pub fn with_retries(mut self, options: Option<RetryOptions>) -> Client {
        self.retries = Retries::new(options);
        self
    }

    /// Tells of answers that do not come; with `None` it waits for them in silence.
    #[must_use]
    pub fn with_observer(mut self, observer: Option<Observer>) -> Client {
        self.observer = observer;
        self
    }

    /// Waits for what a request comes to, and tells the observer when that takes long: from the first attempt on, or once one has failed.
    async fn observed<T>(&self, path: &str, from_the_first: bool, answer: impl Future<Output = T>) -> T {
        let Some(observer) = &self.observer else { return answer.await };
        self.retries.forget_said();
        let tried_for = self.retries.deadline();
        let delay = |waited| {
            let said = self.retries.said();
            let is_told = from_the_first || said.is_some();
            // Who said it may have been left for another one since.
            let asked = if said.is_some() { &self.asked } else { &self.current };
            let address = self.at(asked.load(Ordering::Relaxed)).to_string();
            is_told.then_some(Delay { address, waited, said, tried_for })
        };
        observer.watch(quiet(path), delay, answer).await
    }

    /// Where it talks to, or tries to first.
    pub fn address(&self) -> &Address {
        self.at(self.current.load(Ordering::Relaxed))
    }

    fn at(&self, number: usize) -> &Address {
        number.checked_sub(1).and_then(|other| self.others.get(other)).unwrap_or(&self.address)
    }

    fn count(&self) -> usize {
        self.others.len().saturating_add(1)
    }

    pub(crate) fn broken(&self, reason: impl ToString) -> ClientError {
        ClientError::Broken { address: self.address().to_string(), reason: reason.to_string() }
    }

    /// Opens a connection to the first node that takes one. Where one is slow to, the next is tried beside it (as RFC 8305 has it with
    /// the addresses of one host): a machine that is gone refuses nothing.
    async fn connect<B: SendableBody>(&self) -> Result<Open<B>, ClientError> {
        let (count, first) = (self.count(), self.current.load(Ordering::Relaxed));
        let within = if count == 1 { CONNECT_TIMEOUT } else { CONNECT_TIMEOUT_OF_SEVERAL };
        let order: Vec<usize> = (first..count).chain(0..first.min(count)).collect();
        let mut waiting = order.into_iter();
        let (mut trying, mut reasons) = (JoinSet::new(), Vec::new());
        loop {
            let next = waiting.next();
            if let Some(number) = next {
                let (address, trust) = (self.at(number).clone(), self.trust.clone());
                trying.spawn(async move {
                    let opened = tokio::time::timeout(within, handshake(&address, trust.as_ref())).await;
                    let late = || Err(format!("it does not answer within {} s", within.as_secs()));
                    (number, opened.unwrap_or_else(|_| late()))
                });
            }
            let ended = match next {
                // The last one is waited for to its end.
                Some(_) if waiting.len() > 0 => tokio::time::timeout(ANOTHER_AFTER, trying.join_next()).await,
                _ => Ok(trying.join_next().await),
            };
            match ended {
                Ok(Some(Ok((number, Ok(sender))))) => {
                    self.current.store(number, Ordering::Relaxed);
                    self.asked.store(number, Ordering::Relaxed);
                    return Ok(Open { sender, number });
                }
                Ok(Some(Ok((number, Err(reason))))) => reasons.push((number, reason)),
                Ok(Some(Err(error))) => reasons.push((first, error.to_string())),
                Ok(None) => break,
                // The next one gets its chance.
                Err(_) => {}
            }
        }
        reasons.sort_unstable();
        let address: Vec<String> = reasons.iter().map(|(number, _)| self.at(*number).to_string()).collect();
        let reason = match reasons.as_slice() {
            [(_, reason)] => reason.clone(),
            several => {
                let told = several.iter().map(|(number, why)| format!("{}: {why}", self.at(*number)));
                told.collect::<Vec<_>>().join("; ")
            }
        };
        Err(ClientError::Unreachable { address: address.join(", "), reason })
    }

    /// Leaves the node that it talks to, where there are others.
    async fn leave(&self) {
        if self.others.is_empty() {
            return;
        }
        let left = self.connection.lock().await.take();
        let number = left.map_or_else(|| self.current.load(Ordering::Relaxed), |open| open.number);
        let next = number.saturating_add(1) % self.count();
        self.current.store(next, Ordering::Relaxed);
    }

    fn request<B>(
        &self,
        number: usize,
        method: &Method,
        path: &str,
        headers: &[(&str, &str)],
        body: B,
    ) -> Result<Request<B>, ClientError> {
        let host = self.at(number).authority();
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(body).map_err(|error| ClientError::Unreachable {
            address: self.at(number).to_string(),
            reason: format!("the request cannot be written: {error}"),
        })
    }

    /// Sends a request and returns the response's head with its body unread.
    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut slot = self.connection.lock().await;
        let open = match slot.take() {
            Some(mut open) if !open.sender.is_closed() => open.sender.ready().await.is_ok().then_some(open),
            _ => None,
        };
        let reused = open.is_some();
        let mut open = match open {
            Some(open) => open,
            None => self.connect().await?,
        };
        let request = self.request(open.number, &method, path, headers, Full::new(body.clone()))?;
        let response = match open.sender.send_request(request).await {
            Ok(response) => response,
            // An idle connection that the node closed tells so only now. Nothing of the request was taken then, and
            // reading twice or writing twice under one idempotency key does no harm.
            Err(error) if reused && (error.is_closed() || error.is_canceled() || method == Method::GET) => {
                open = self.connect().await?;
                let again = self.request(open.number, &method, path, headers, Full::new(body))?;
                open.sender.send_request(again).await.map_err(|error| self.broken(error))?
            }
            Err(error) => return Err(self.broken(error)),
        };
        *slot = Some(open);
        Ok(response)
    }

    async fn whole(&self, response: Response<Incoming>) -> Result<(StatusCode, Bytes), ClientError> {
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST_RESPONSE_BYTES).collect().await;
        Ok((status, body.map_err(|error| self.broken(error))?.to_bytes()))
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> ClientError {
        match serde_json::from_slice::<Problem>(body) {
            Ok(problem) => ClientError::Refused(Box::new(problem)),
            Err(_) => ClientError::Unreadable {
                address: self.address().to_string(),
                reason: format!("status {status} without the particulars that Grey would give"),
            },
        }
    }

    fn read<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|error| ClientError::Unreadable {
            address: self.address().to_string(),
            reason: error.to_string(),
        })
    }

    /// Sends a request once. Returns its answer, and how full the node is where it says so.
    async fn once(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<(Bytes, Option<String>), ClientError> {
        let answering = async {
            let response = self.send(method, path, headers, body).await?;
            let level = response.headers().get("grey-pressure").and_then(|value| value.to_str().ok());
            let level = level.map(str::to_owned);
            let (status, body) = self.whole(response).await?;
            if status.is_success() { Ok((body, level)) } else { Err(self.refusal(status, &body)) }
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, answering).await {
            Ok(answer) => answer,
            Err(_) => Err(self.broken(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))),
        }
    }

    /// Sends a request until it is answered, or what it fails with is final; somebody may watch it.
    async fn answered(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
        repeat: Repeat,
    ) -> Result<Bytes, ClientError> {
        let answer = self.until_answered(method, path, headers, body, repeat);
        self.observed(path, true, answer).await
    }

    async fn until_answered(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
        repeat: Repeat,
    ) -> Result<Bytes, ClientError> {
        let mut attempts = self.retries.begin();
        if method != Method::GET && repeat == Repeat::Always {
            tokio::time::sleep(self.retries.pause()).await;
        }
        loop {
            let begun = Instant::now();
            match self.once(method.clone(), path, headers, body.clone()).await {
                Ok((answer, level)) => {
                    self.retries.succeeded(begun.elapsed(), level.as_deref());
                    return Ok(answer);
                }
                Err(error) => {
                    if !self.wait_to_repeat(&mut attempts, &error, repeat).await {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Waits until a request that failed may be sent again, to another node where that may help; false when its failure is final.
    pub(crate) async fn wait_to_repeat(
        &self,
        attempts: &mut Attempts,
        error: &ClientError,
        repeat: Repeat,
    ) -> bool {
        let Some(wait) = self.retries.wait(attempts, error, repeat) else { return false };
        if is_elsewhere_perhaps(error) {
            self.leave().await;
        }
        tokio::time::sleep(wait).await;
        true
    }

    pub(crate) fn retries(&self) -> &Retries {
        &self.retries
    }

    /// Fetches a document as it is.
    pub async fn get_bytes(&self, path: &str) -> Result<Bytes, ClientError> {
        self.answered(Method::GET, path, &[], Bytes::new(), Repeat::Always).await
    }

    /// Fetches a document.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.read(&self.get_bytes(path).await?)
    }

    /// Fetches a body that is read piece by piece, on a connection of its own. Where another node may answer what this one does not, it
    /// is asked the next time.
    pub async fn stream(&self, path: &str) -> Result<Body, ClientError> {
        let opened = self.observed(path, true, self.open_stream(path)).await;
        if opened.as_ref().is_err_and(is_elsewhere_perhaps) {
            self.leave().await;
        }
        opened
    }

    async fn open_stream(&self, path: &str) -> Result<Body, ClientError> {
        let mut open = self.connect().await?;
        let request = self.request(open.number, &Method::GET, path, &[], Full::new(Bytes::new()))?;
        let response = open.sender.send_request(request).await.map_err(|error| self.broken(error))?;
        if !response.status().is_success() {
            let (status, body) = self.whole(response).await?;
            return Err(self.refusal(status, &body));
        }
        Ok(self.body(response))
    }

    fn body(&self, response: Response<Incoming>) -> Body {
        let attempt = response.headers().get("grey-attempt");
        let attempt = attempt.and_then(|value| value.to_str().ok()?.parse().ok());
        Body { attempt, incoming: response.into_body(), address: self.address().to_string() }
    }

    /// Sends a file from where it stands, on a connection of its own, to where sending it twice does no harm.
    pub async fn post_file<T: DeserializeOwned>(
        &self,
        path: &str,
        file: File,
        length_bytes: u64,
    ) -> Result<T, ClientError> {
        // That it takes long to send much is no trouble.
        self.observed(path, false, self.until_sent(path, file, length_bytes)).await
    }

    async fn until_sent<T: DeserializeOwned>(
        &self,
        path: &str,
        mut file: File,
        length_bytes: u64,
    ) -> Result<T, ClientError> {
        let offset = file.stream_position().map_err(|error| self.broken(error))?;
        // How long the first attempt takes depends on the file alone; the deadline is over what comes after it.
        let (file, mut attempts) = (Arc::new(file), None);
        loop {
            let body = FileBody { file: file.clone(), offset, left_bytes: length_bytes };
            let error = match self.post_body(path, body).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let attempts = attempts.get_or_insert_with(|| self.retries.begin());
            if !self.wait_to_repeat(attempts, &error, Repeat::Always).await {
                return Err(error);
            }
        }
    }

    async fn post_body<T: DeserializeOwned>(&self, path: &str, body: FileBody) -> Result<T, ClientError> {
        let mut open = self.connect().await?;
        let request = self.request(
            open.number,
            &Method::POST,
            path,
            &[("content-type", "application/octet-stream")],
            body,
        )?;
        let response = open.sender.send_request(request).await.map_err(|error| self.broken(error))?;
        let (status, body) = self.whole(response).await?;
        if status.is_success() { self.read(&body) } else { Err(self.refusal(status, &body)) }
    }

    /// Sends pieces as they come, on a connection of its own; the answer may begin before the last one is sent.
    pub async fn post_pieces(
        &self,
        path: &str,
        media_type: &str,
        pieces: Receiver<std::io::Result<Bytes>>,
        key: Option<&str>,
    ) -> Result<Body, ClientError> {
        self.post_streaming(path, media_type, PiecesBody(pieces), key).await
    }

    /// Sends a body as it comes, on a connection of its own; the answer may begin before its end.
    pub(crate) async fn post_streaming<B: SendableBody>(
        &self,
        path: &str,
        media_type: &str,
        body: B,
        key: Option<&str>,
    ) -> Result<Body, ClientError> {
        let mut open = self.connect().await?;
        let mut headers = vec![("content-type", media_type)];
        headers.extend(key.map(|key| ("idempotency-key", key)));
        let request = self.request(open.number, &Method::POST, path, &headers, body)?;
        let response = open.sender.send_request(request).await.map_err(|error| self.broken(error))?;
        if !response.status().is_success() {
            let (status, body) = self.whole(response).await?;
            return Err(self.refusal(status, &body));
        }
        Ok(self.body(response))
    }

    /// Removes what is at a path; to do that twice does no harm.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.read(&self.answered(Method::DELETE, path, &[], Bytes::new(), Repeat::Always).await?)
    }

    /// Sends a document, under an idempotency key where one is given.
    pub async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        key: Option<&str>,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| {
            let problem = Problem::new(ErrorCode::InvalidRequest, error.to_string());
            ClientError::Refused(Box::new(problem))
        })?;
        self.post_bytes(path, "application/json", body.into(), key).await
    }

    /// Sends bytes of a media type, under an idempotency key where one is given.
    pub async fn post_bytes<T: DeserializeOwned>(
        &self,
        path: &str,
        media_type: &str,
        body: Bytes,
        key: Option<&str>,
    ) -> Result<T, ClientError> {
        let mut headers = vec![("content-type", media_type)];
        if let Some(key) = key {
            headers.push(("idempotency-key", key));
        }
        let repeat = if key.is_some() { Repeat::Always } else { Repeat::Refused };
        self.read(&self.answered(Method::POST, path, &headers, body, repeat).await?)
    }
}

/// Whether another node may answer what this one cannot.
fn is_elsewhere_perhaps(error: &ClientError) -> bool {
    match error {
        ClientError::Refused(problem) => {
            matches!(problem.code, ErrorCode::Unavailable | ErrorCode::OutcomeUnknown)
        }
        ClientError::Broken { .. } | ClientError::Unreachable { .. } => true,
        ClientError::Unreadable { .. } => false,
    }
}

/// What a connection can send.
pub(crate) trait SendableBody:
    hyper::body::Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static
{
}

impl<B> SendableBody for B where
    B: hyper::body::Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static
{
}

/// Pieces that somebody else reads, as a body.
struct PiecesBody(Receiver<std::io::Result<Bytes>>);

impl hyper::body::Body for PiecesBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

/// A file as a body, read piece by piece. Reading a local file does not wait for others, so it is read where it is sent.
struct FileBody {
    /// Read at offsets, not where it stands: what is left of an earlier attempt may still read it too.
    file: Arc<File>,
    offset: u64,
    left_bytes: u64,
}

impl hyper::body::Body for FileBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let length = usize::try_from(self.left_bytes.min(FILE_PIECE_BYTES)).unwrap_or(0);
        if length == 0 {
            return Poll::Ready(None);
        }
        let mut piece = vec![0; length];
        // A file that became shorter breaks the request off: what was announced must be what is sent.
        if let Err(error) = self.file.read_exact_at(&mut piece, self.offset) {
            return Poll::Ready(Some(Err(error)));
        }
        self.left_bytes -= length as u64;
        self.offset += length as u64;
        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left_bytes == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left_bytes)
    }
}
