//! A small HTTP client for OpenAI-style streams, shared by chat and bench.

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Which server and model to talk to.
#[derive(Debug, clap::Args)]
pub(crate) struct ServerArgs {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    base_url: String,
    /// The model [default: the server's first]
    #[arg(long)]
    model: Option<String>,
    /// The server's key
    #[arg(long, env = "SCONCE_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
}

impl ServerArgs {
    /// The server, and the model's name.
    pub(crate) async fn connect(&self) -> anyhow::Result<(Server, String)> {
        let server = Server::new(&self.base_url, self.api_key.clone())?;
        let model = match &self.model {
            Some(model) => model.clone(),
            None => server.first_model().await?,
        };
        Ok((server, model))
    }
}

/// A server, by its address.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    authority: String,
    api_key: Option<String>,
}

impl Server {
    /// A server at `http://HOST:PORT`.
    pub(crate) fn new(base_url: &str, api_key: Option<String>) -> anyhow::Result<Self> {
        let rest =
            base_url.strip_prefix("http://").context("the base URL must begin with http://")?;
        let authority = rest.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        if authority.is_empty() || authority.contains('/') {
            bail!("{base_url:?} is no base URL; write http://HOST:PORT");
        }
        let has_port = authority.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok());
        let authority = if has_port { authority } else { format!("{authority}:80") };
        Ok(Self { authority, api_key })
    }

    /// The first model that the server names.
    pub(crate) async fn first_model(&self) -> anyhow::Result<String> {
        let response = self.send("GET", "/v1/models", None).await?;
        let models: Value = serde_json::from_slice(&whole(response).await?)?;
        let id = models["data"][0]["id"].as_str().context("the server names no model")?;
        Ok(id.to_owned())
    }

    /// Posts a request and reads its stream.
    pub(crate) async fn stream(&self, path: &str, body: &Value) -> anyhow::Result<EventStream> {
        let response = self.send("POST", path, Some(body.to_string())).await?;
        Ok(EventStream { body: response.into_body(), events: SseParser::default() })
    }

    /// Sends a request over a connection of its own; other status codes than
    /// 200 are errors with the server's message.
    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<String>,
    ) -> anyhow::Result<Response<Incoming>> {
        let unreachable = || format!("{} cannot be reached", self.authority);
        let stream = TcpStream::connect(&self.authority).await.with_context(unreachable)?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // The connection ends with the response; what fails in it shows there.
        tokio::spawn(async move { connection.await.ok() });
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.authority)
            .header(CONTENT_TYPE, "application/json");
        if let Some(key) = &self.api_key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        let body = Full::new(Bytes::from(body.unwrap_or_default()));
        let response = sender.send_request(request.body(body)?).await?;
        let status = response.status();
        if !status.is_success() {
            let text = whole(response).await?;
            let message = serde_json::from_slice::<Value>(&text)
                .ok()
                .and_then(|body| body["error"]["message"].as_str().map(ToOwned::to_owned))
                .unwrap_or_else(|| String::from_utf8_lossy(&text).into_owned());
            bail!("{status}: {message}");
        }
        Ok(response)
    }
}

async fn whole(response: Response<Incoming>) -> anyhow::Result<Bytes> {
    Ok(response.into_body().collect().await?.to_bytes())
}

/// The events of one response.
pub(crate) struct EventStream {
    body: Incoming,
    events: SseParser,
}

impl EventStream {
    /// The next event; `None` after `[DONE]`.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Value>> {
        loop {
            if let Some(data) = self.events.next() {
                if data == "[DONE]" {
                    return Ok(None);
                }
                let event: Value = serde_json::from_str(&data)?;
                if let Some(message) = event["error"]["message"].as_str() {
                    bail!("{message}");
                }
                return Ok(Some(event));
            }
            match self.body.frame().await {
                None => bail!("the stream ended before [DONE]"),
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.events.push(&data);
                    }
                }
            }
        }
    }
}

/// Cuts server-sent events out of bytes that come in any pieces.
#[derive(Default)]
struct SseParser {
    pending: Vec<u8>,
    /// Bytes of `pending` that hold no end of an event.
    searched: usize,
}

impl SseParser {
    fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The data of the next whole event.
    fn next(&mut self) -> Option<String> {
        loop {
            let from = self.searched.saturating_sub(1);
            let end = self.pending[from..].windows(2).position(|pair| pair == b"\n\n");
            let Some(end) = end.map(|at| from + at) else {
                self.searched = self.pending.len();
                return None;
            };
            let event: Vec<u8> = self.pending.drain(..end + 2).take(end).collect();
            self.searched = 0;
            let event = String::from_utf8_lossy(&event).into_owned();
            let lines = event.lines().filter_map(|line| line.strip_prefix("data:"));
            let data: Vec<_> = lines.map(str::trim_start).collect();
            if !data.is_empty() {
                return Some(data.join("\n"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::SseParser;

    #[test]
    fn events_are_the_same_however_they_are_cut() {
        let wire =
            "data: {\"a\":1}\n\n: a comment\n\ndata: é\ndata: two\n\ndata: [DONE]\n\n".as_bytes();
        for size in 1..=wire.len() {
            let mut parser = SseParser::default();
            let mut events = Vec::new();
            for piece in wire.chunks(size) {
                parser.push(piece);
                events.extend(std::iter::from_fn(|| parser.next()));
            }
            assert_eq!(events, ["{\"a\":1}", "é\ntwo", "[DONE]"], "pieces of {size}");
        }
    }
}
