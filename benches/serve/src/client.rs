//! A small HTTP client for OpenAI-style streams.

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::sse::{SseParser, TooLong};

/// What went wrong between the client and the server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none.
    #[error("{0:?} is no base URL; write http://HOST:PORT")]
    BaseUrl(String),
    /// Nobody answers there.
    #[error("{authority} cannot be reached: {source}")]
    Unreachable {
        /// The server's host and port.
        authority: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// The connection broke, or the answer is not HTTP.
    #[error("the connection failed: {0}")]
    Http(#[from] hyper::Error),
    /// The request cannot be put into HTTP, for instance for its key.
    #[error("the request cannot be sent: {0}")]
    Request(#[from] hyper::http::Error),
    /// The server refused.
    #[error("{status}: {message}")]
    Status {
        /// Its status code.
        status: StatusCode,
        /// Its message.
        message: String,
    },
    /// The server sent an error within a stream.
    #[error("{0}")]
    Stream(String),
    /// What came is not the JSON that was expected.
    #[error("the server's answer cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// The server names no model, and none was given.
    #[error("the server names no model; name one with --model")]
    NoModel,
    /// The stream ended early.
    #[error("the stream ended before [DONE]")]
    CutOff,
    /// The stream has no ends of lines.
    #[error("the server sent {0} bytes without ending an event")]
    TooLong(usize),
}

impl From<TooLong> for ClientError {
    fn from(TooLong(bytes): TooLong) -> Self {
        Self::TooLong(bytes)
    }
}

/// Which server and model to talk to.
#[derive(Clone, Debug, clap::Args)]
pub struct ServerArgs {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    pub base_url: String,
    /// The model [default: the server's first]
    #[arg(long)]
    pub model: Option<String>,
    /// The server's key
    #[arg(long, env = "SCONCE_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
}

impl ServerArgs {
    /// The server, and the model's name.
    ///
    /// # Errors
    /// No server there, or it names no model.
    pub async fn connect(&self) -> Result<(Server, String), ClientError> {
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
pub struct Server {
    authority: String,
    api_key: Option<String>,
}

impl Server {
    /// A server at `http://HOST:PORT`.
    ///
    /// # Errors
    /// The URL has another form.
    pub fn new(base_url: &str, api_key: Option<String>) -> Result<Self, ClientError> {
        let bad = || ClientError::BaseUrl(base_url.to_owned());
        let rest = base_url.strip_prefix("http://").ok_or_else(bad)?;
        let authority = rest.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        if authority.is_empty() || authority.contains('/') {
            return Err(bad());
        }
        let has_port = authority.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok());
        let authority = if has_port { authority } else { format!("{authority}:80") };
        Ok(Self { authority, api_key })
    }

    async fn first_model(&self) -> Result<String, ClientError> {
        let models: Value = self.get("/v1/models").await?;
        models["data"][0]["id"].as_str().map(ToOwned::to_owned).ok_or(ClientError::NoModel)
    }

    /// What the server has at a path, as JSON.
    ///
    /// # Errors
    /// No connection, a status other than success, or no such JSON.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.send("GET", path, None).await?;
        Ok(serde_json::from_slice(&whole(response).await?)?)
    }

    /// Posts a request and reads its stream.
    ///
    /// # Errors
    /// No connection, or a status other than success.
    pub async fn stream(&self, path: &str, body: String) -> Result<EventStream, ClientError> {
        let response = self.send("POST", path, Some(body)).await?;
        Ok(EventStream { body: response.into_body(), events: SseParser::default() })
    }

    /// Sends a request over a connection of its own: some servers close those
    /// that are kept alive, and none gains by it here.
    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<String>,
    ) -> Result<Response<Incoming>, ClientError> {
        let unreachable =
            |source| ClientError::Unreachable { authority: self.authority.clone(), source };
        let stream = TcpStream::connect(&self.authority).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
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
            return Err(ClientError::Status { status, message });
        }
        Ok(response)
    }
}

async fn whole(response: Response<Incoming>) -> Result<Bytes, hyper::Error> {
    Ok(response.into_body().collect().await?.to_bytes())
}

/// The events of one response.
pub struct EventStream {
    body: Incoming,
    events: SseParser,
}

impl EventStream {
    /// The next event's data, a JSON text; `None` after `[DONE]`.
    ///
    /// # Errors
    /// The connection broke, or the stream ended early.
    pub async fn next(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            match self.events.next() {
                Some(data) if data == "[DONE]" => return Ok(None),
                Some(data) => return Ok(Some(data)),
                None => {}
            }
            match self.body.frame().await {
                None => return Err(ClientError::CutOff),
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.events.push(&data)?;
                    }
                }
            }
        }
    }

    /// The next event; `None` after `[DONE]`.
    ///
    /// # Errors
    /// As [`EventStream::next`]; and where the event is an error, its message.
    pub async fn next_json(&mut self) -> Result<Option<Value>, ClientError> {
        let Some(data) = self.next().await? else { return Ok(None) };
        let event: Value = serde_json::from_str(&data)?;
        match event["error"]["message"].as_str() {
            Some(message) => Err(ClientError::Stream(message.to_owned())),
            None => Ok(Some(event)),
        }
    }
}
