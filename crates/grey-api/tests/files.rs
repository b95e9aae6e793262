//! Files as a client sends them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{Seek, SeekFrom, Write};
use std::time::Duration;

use grey_api::{Client, ErrorCode, Problem, RetryOptions};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const LENGTH: usize = 600_000;

/// The body of the request that comes, and the connection.
async fn body(listener: &TcpListener) -> (Vec<u8>, TcpStream) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let mut body = vec![0; LENGTH];
    stream.read_exact(&mut body).await.unwrap();
    (body, stream)
}

async fn answer(mut stream: TcpStream, status: u16, body: &str) {
    let length = body.len();
    let answer =
        format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn a_file_is_sent_whole_again_when_nobody_kept_it_and_not_when_it_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let served = tokio::spawn(async move {
        let refusal = |code| serde_json::to_string(&Problem::new(code, "no").retry_after_ms(1)).unwrap();
        let (first, stream) = body(&listener).await;
        answer(stream, 503, &refusal(ErrorCode::Unavailable)).await;
        let (second, stream) = body(&listener).await;
        drop(stream);
        let (third, stream) = body(&listener).await;
        answer(stream, 200, "{}").await;
        assert!(first == second && second == third);
        let (_, stream) = body(&listener).await;
        answer(stream, 408, &refusal(ErrorCode::RequestTimeout)).await;
        first
    });
    let options = RetryOptions { first_wait: Duration::from_millis(1), ..RetryOptions::default() };
    let client = Client::new(address, None).with_retries(Some(options));
    let mut file = tempfile::tempfile().unwrap();
    let content: Vec<u8> = (0..LENGTH + 3).map(|number| number as u8).collect();
    file.write_all(&content).unwrap();
    // It is sent from where it stands.
    file.seek(SeekFrom::Start(3)).unwrap();
    let copy = file.try_clone().unwrap();
    client.post_file::<Value>("/v1/blobs", file, LENGTH as u64).await.unwrap();
    let refused = client.post_file::<Value>("/v1/blobs", copy, LENGTH as u64).await.unwrap_err();
    assert_eq!(refused.problem().unwrap().status, 408);
    assert_eq!(served.await.unwrap(), &content[3..]);
}
