//! The client that posts spans to a collector: one connection for a batch, over hyper.

use std::{io, time::Duration};

use axum::{
    body::Bytes,
    http::{
        HeaderMap, HeaderValue, Request, Response, StatusCode,
        header::{CONNECTION, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT},
    },
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::sleep};

use super::{TracesConfig, TracesEndpoint};

/// Bytes of a collector's answer that are read.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// The first pause before another attempt; each is twice the one before, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// A collector that takes spans.
#[derive(Debug)]
pub(super) struct Collector {
    endpoint: TracesEndpoint,
    headers: HeaderMap,
    /// For all attempts of a batch together.
    timeout: Duration,
}

/// Why a collector did not take spans.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("no connection: {0}")]
    Connect(#[from] io::Error),
    #[error("no answer: {0}")]
    Http(#[from] hyper::Error),
    #[error("its answer could not be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("no answer within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
}

impl Collector {
    pub(super) fn new(config: &TracesConfig) -> Self {
        let TracesConfig { endpoint, headers, timeout, .. } = config.clone();
        let mut all = headers;
        let agent = concat!("sconce/", env!("CARGO_PKG_VERSION"));
        for (name, value) in [
            (HOST, endpoint.authority().clone()),
            (CONNECTION, HeaderValue::from_static("close")),
            (CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf")),
            (USER_AGENT, HeaderValue::from_static(agent)),
        ] {
            all.insert(name, value);
        }
        Self { endpoint, headers: all, timeout }
    }

    pub(super) fn endpoint(&self) -> &TracesEndpoint {
        &self.endpoint
    }

    /// Posts what is encoded, again and again while that may help and there is time; gives the
    /// collector's answer.
    pub(super) async fn post(&self, body: Vec<u8>) -> Result<Bytes, Failure> {
        let mut latest = None;
        let posted = self.post_until_taken(body.into(), &mut latest);
        match tokio::time::timeout(self.timeout, posted).await {
            Ok(outcome) => outcome,
            Err(_) => Err(latest.unwrap_or(Failure::TimedOut(self.timeout))),
        }
    }

    async fn post_until_taken(
        &self,
        body: Bytes,
        latest: &mut Option<Failure>,
    ) -> Result<Bytes, Failure> {
        let mut pause = FIRST_PAUSE;
        loop {
            let (failure, asked) = match self.post_once(body.clone()).await {
                Ok(answer) if answer.status().is_success() => return Ok(answer.into_body()),
                Ok(answer) if !is_transient(answer.status()) => {
                    return Err(Failure::Status(answer.status()));
                }
                Ok(answer) => (Failure::Status(answer.status()), retry_after(answer.headers())),
                Err(failure) => (failure, None),
            };
            *latest = Some(failure);
            sleep(asked.unwrap_or(pause).max(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn post_once(&self, body: Bytes) -> Result<Response<Bytes>, Failure> {
        let stream = TcpStream::connect(self.endpoint.address()).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut request = Request::post(self.endpoint.target())
            .body(Full::new(body))
            .expect("the target was part of a URL");
        *request.headers_mut() = self.headers.clone();
        let exchange = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
            Ok::<_, Failure>(Response::from_parts(head, body.map_err(Failure::Body)?.to_bytes()))
        };
        // The connection is driven here, so that it ends with the attempt.
        tokio::pin!(exchange, connection);
        tokio::select! {
            answer = &mut exchange => answer,
            ended = &mut connection => {
                ended?;
                exchange.await
            }
        }
    }
}

/// Whether the collector may take the same batch later, as the OTLP specification has it.
fn is_transient(status: StatusCode) -> bool {
    [
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::BAD_GATEWAY,
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::GATEWAY_TIMEOUT,
    ]
    .contains(&status)
}

/// Seconds that the collector asks for; a date is not understood.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
