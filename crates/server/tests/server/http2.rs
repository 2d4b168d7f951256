//! HTTP/2: connections that are idle, and streams whose clients stall.

use std::time::Duration;

use axum::body::{Body, Bytes};
use futures::{SinkExt as _, channel::mpsc};
use http_body_util::BodyExt as _;
use hyper::{
    Request,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sconce_server::ConnectionConfig;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::wire::{Client, Server};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const NO_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// `GET http:/health` on stream 1.
const REQUEST: &[u8] = b"\x00\x00\x0b\x01\x05\x00\x00\x00\x01\x82\x86\x04\x07/health";
const END_STREAM: u8 = 1;
const HEADERS: u8 = 1;
const GOAWAY: u8 = 7;

/// A frame's type and whether it ends its stream; none once the connection is closed.
async fn frame(client: &mut Client) -> Option<(u8, bool)> {
    let mut head = [0; 9];
    client.0.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    client.0.read_exact(&mut payload).await.expect("frames are whole");
    Some((head[3], head[3] <= HEADERS && head[4] & END_STREAM != 0))
}

/// The types of the frames that come until the connection is closed.
async fn frames(client: &mut Client) -> Vec<u8> {
    let mut types = Vec::new();
    while let Some((kind, _)) = frame(client).await {
        types.push(kind);
    }
    types
}

/// A client whose streams may be sent a few bytes more than it has read.
async fn connect(server: &Server) -> SendRequest<Body> {
    let socket = TcpStream::connect(server.address).await.expect("it listens");
    // Otherwise a body waits for an acknowledgement, and paused time for nothing.
    socket.set_nodelay(true).expect("it is set");
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1024)
        .handshake(TokioIo::new(socket))
        .await
        .expect("it speaks HTTP/2");
    tokio::spawn(connection);
    sender
}

fn post(body: Body) -> Request<Body> {
    Request::post("http://test/v1/completions").body(body).expect("a request")
}

fn completion(max_tokens: usize, stream: bool) -> Request<Body> {
    let body = json!({
        "prompt": [1, 2],
        "max_tokens": max_tokens,
        "ignore_eos": true,
        "stream": stream,
    });
    post(Body::from(body.to_string()))
}

/// Whether a connection still serves requests.
async fn is_served(sender: &mut SendRequest<Body>) -> bool {
    let response = sender.send_request(completion(4, true)).await.expect("it is answered");
    let text = response.into_body().collect().await.expect("it is whole").to_bytes();
    String::from_utf8_lossy(&text).contains("[DONE]")
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_not_answered_in_http1() {
    let server = Server::start(ConnectionConfig::default()).await;
    let mut client = server.connect().await;
    client.0.write_all(&[PREFACE, NO_SETTINGS].concat()).await.expect("it is sent");
    assert!(frames(&mut client).await.contains(&GOAWAY));
    for len in [4, PREFACE.len() - 1] {
        let mut client = server.connect().await;
        client.0.write_all(&PREFACE[..len]).await.expect("it is sent");
        assert_eq!(client.rest().await, "");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_does_not_hold_the_end_up() {
    let drain_timeout = Duration::from_secs(10_000);
    let server = Server::start(ConnectionConfig { drain_timeout, ..Default::default() }).await;
    let mut client = server.connect().await;
    client.0.write_all(&[PREFACE, NO_SETTINGS, REQUEST].concat()).await.expect("it is sent");
    while !frame(&mut client).await.expect("it is answered").1 {}
    // It answers no PING from here on, as a client that hangs.
    server.signal().await;
    // Time stands still meanwhile, so no time limit and no PING's ends the connection.
    while !server.served.is_finished() {
        tokio::task::yield_now().await;
    }
    server.ended().await.expect("nothing was cut off");
    assert!(frames(&mut client).await.contains(&GOAWAY));
}

#[tokio::test]
async fn running_streams_are_finished_at_the_end() {
    let mut server = Server::gated(ConnectionConfig::default()).await;
    let mut sender = connect(&server).await;
    let running = sender.send_request(completion(100, true));
    let running = tokio::spawn(async { running.await?.into_body().collect().await });
    while server.engine.unfinished() == 0 {
        tokio::task::yield_now().await;
    }
    server.signal().await;
    while !server.engine.is_draining() {
        tokio::task::yield_now().await;
    }
    server.permits = None;
    let text = running.await.expect("no panic").expect("it is whole").to_bytes();
    assert!(text.ends_with(b"data: [DONE]\n\n"), "{text:?}");
    server.ended().await.expect("nothing was cut off");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_read_is_reset_alone() {
    let server = Server::start(ConnectionConfig::default()).await;
    let mut sender = connect(&server).await;
    let metrics = Request::get("http://test/metrics").body(Body::empty()).expect("a request");
    // Answers of many pieces, and of one.
    for request in [completion(500, true), completion(500, false), metrics] {
        let response = sender.send_request(request).await.expect("it is answered");
        assert_eq!(response.status(), 200);
        while server.engine.unfinished() > 0 {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(2 * ConnectionConfig::default().write_timeout).await;
        let read = response.into_body().collect().await;
        assert!(read.is_err(), "it was kept for its client");
        assert!(is_served(&mut sender).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_read_slowly_is_sent_whole() {
    let server = Server::start(ConnectionConfig::default()).await;
    let mut sender = connect(&server).await;
    let response = sender.send_request(completion(100, false)).await.expect("it is answered");
    let len = response.headers()["content-length"].to_str().expect("ASCII").parse::<usize>();
    let mut body = response.into_body();
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        read += frame.expect("it is not reset").into_data().map_or(0, |data| data.len());
        tokio::time::sleep(ConnectionConfig::default().write_timeout * 3 / 4).await;
    }
    assert_eq!(Ok(read), len);
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_body_stalls_is_answered_and_others_go_on() {
    let server = Server::start(ConnectionConfig::default()).await;
    let mut sender = connect(&server).await;
    let (mut frames, body) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let stalled = sender.send_request(post(Body::from_stream(body)));
    frames.send(Ok(Bytes::from_static(b"{\"prompt\": "))).await.expect("it is sent");
    let stalled = tokio::spawn(stalled);
    assert!(is_served(&mut sender).await);
    let response = stalled.await.expect("no panic").expect("it is answered");
    assert_eq!(response.status(), 408);
    response.into_body().collect().await.expect("it is whole");
    // The stream is over, so its client sends no more.
    while !frames.is_closed() {
        tokio::task::yield_now().await;
    }
    assert!(is_served(&mut sender).await);
}
