//! A small HTTP client for OpenAI-style streams, shared by chat and bench.

use std::collections::VecDeque;

use anyhow::{Context as _, bail, ensure};
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
                        self.events.push(&data)?;
                    }
                }
            }
        }
    }
}

/// The longest line that is read; a server that never ends one is given up.
const MAX_LINE: usize = 16 << 20;

/// Cuts server-sent events out of bytes that come in any pieces. Lines end with
/// CR, LF or both, as the standard has it; fields other than `data` are skipped.
#[derive(Default)]
struct SseParser {
    /// The line that has begun.
    line: Vec<u8>,
    /// The data of the event that has begun.
    data: Option<String>,
    /// The last byte was a CR, so an LF now belongs to it.
    after_cr: bool,
    whole: VecDeque<String>,
}

impl SseParser {
    fn push(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        for &byte in bytes {
            let ends_cr = std::mem::replace(&mut self.after_cr, byte == b'\r') && byte == b'\n';
            match byte {
                _ if ends_cr => {}
                b'\r' | b'\n' => self.end_line(),
                _ => self.line.push(byte),
            }
        }
        let pending = self.line.len() + self.data.as_ref().map_or(0, String::len);
        ensure!(pending <= MAX_LINE, "the server sent {pending} bytes without ending an event");
        Ok(())
    }

    fn end_line(&mut self) {
        if self.line.is_empty() {
            self.whole.extend(self.data.take());
            return;
        }
        let line = String::from_utf8_lossy(&self.line);
        if let Some(value) = line.strip_prefix("data:") {
            let value = value.strip_prefix(' ').unwrap_or(value);
            match &mut self.data {
                None => self.data = Some(value.to_owned()),
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
            }
        }
        self.line.clear();
    }

    /// The data of the next whole event.
    fn next(&mut self) -> Option<String> {
        self.whole.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{MAX_LINE, SseParser};

    fn parse(pieces: &[&[u8]]) -> Vec<String> {
        let mut parser = SseParser::default();
        let mut events = Vec::new();
        for piece in pieces {
            parser.push(piece).expect("it is short");
            events.extend(std::iter::from_fn(|| parser.next()));
        }
        events
    }

    proptest! {
        #[test]
        fn events_are_the_same_however_they_are_cut_and_lines_end(
            events in prop::collection::vec("[ a:é]{1,5}(\n[ a:é]{0,5}){0,2}", 0..6),
            ends in prop::collection::vec(prop::sample::select(vec!["\n", "\r", "\r\n"]), 1..9),
            comments in any::<bool>(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut ends = ends.iter().cycle();
            let mut wire = String::new();
            let mut line = |text: &str| {
                wire.push_str(text);
                // A CR and the LF of an empty line after it would be one end.
                let end = ends.next().expect("a cycle");
                wire.push_str(if wire.ends_with('\r') && *end == "\n" { "\r" } else { end });
            };
            for event in &events {
                if comments {
                    line(": a comment");
                    line("event: x");
                }
                event.split('\n').for_each(|text| line(&format!("data: {text}")));
                line("");
            }
            let wire = wire.as_bytes();
            let mut borders: Vec<_> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
            borders.extend([0, wire.len()]);
            borders.sort_unstable();
            let pieces: Vec<_> = borders.windows(2).map(|pair| &wire[pair[0]..pair[1]]).collect();
            prop_assert_eq!(parse(&pieces), events);
        }
    }

    #[test]
    fn an_event_without_end_is_given_up() {
        let mut parser = SseParser::default();
        let piece = vec![b'x'; MAX_LINE / 2];
        assert!(parser.push(&piece).is_ok() && parser.push(&piece).is_ok());
        assert!(parser.push(&piece).is_err());
    }

    #[test]
    fn what_is_cut_off_is_no_event() {
        assert_eq!(parse(&[b"data: whole\n\ndata: half\n"]), ["whole"]);
    }
}
