//! Errors as clients see them: the one place that knows HTTP status codes.

use std::{fmt::Display, time::Duration};

use axum::{
    Json,
    http::{
        HeaderValue, StatusCode,
        header::{ACCEPT_ENCODING, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use sconce_batches::StoreError;
use sconce_engine::{Overload, RequestError, SubmitError, Unfit};
use sconce_grammar::GrammarError;
use sconce_text::{StopError, TextError};
use serde::Serialize;
use utoipa::ToSchema;

use crate::ReloadError;

/// Seconds after which a refused client may try again where nothing better is known.
const RETRY_AFTER_SECONDS: u64 = 1;

/// OpenAI's code for what does not fit the context.
const CONTEXT_LENGTH: &str = "context_length_exceeded";

/// Characters of a message at most: it may quote what the client sent.
const MAX_MESSAGE_CHARS: usize = 1000;

/// An error in OpenAI's shape, as it is sent.
#[derive(Serialize, ToSchema)]
#[schema(as = Error)]
pub(crate) struct ErrorBody<'a> {
    error: ErrorDetail<'a>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ErrorDetail)]
struct ErrorDetail<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    #[schema(inline)]
    kind: ErrorKind,
    /// The field at fault, with its place: `messages[0].content[1].type`.
    #[schema(required)]
    param: Option<&'a str>,
    /// For programs, where there are several reasons for one status.
    #[schema(required)]
    code: Option<&'static str>,
}

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::enum_variant_names, reason = "the API's words")]
enum ErrorKind {
    InvalidRequestError,
    RateLimitError,
    ServerError,
}

impl ErrorKind {
    const fn name(self) -> &'static str {
        match self {
            Self::InvalidRequestError => "invalid_request_error",
            Self::RateLimitError => "rate_limit_error",
            Self::ServerError => "server_error",
        }
    }
}

/// An error in OpenAI's shape.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: ErrorKind,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    /// In whole seconds.
    retry_after: u64,
    cause: Option<Box<Cause>>,
}

/// What an error was before it had a shape for clients: callers in this process are told that.
#[derive(Clone, Debug)]
pub(crate) enum Cause {
    Submit(SubmitError),
    Request(RequestError),
    Grammar(GrammarError),
}

impl ApiError {
    fn new(status: StatusCode, kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code: None,
            param: None,
            message: shortened(message.into()),
            retry_after: RETRY_AFTER_SECONDS,
            cause: None,
        }
    }

    /// The request is wrong; `param` is the field at fault.
    pub(crate) fn invalid(param: Option<&str>, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, ErrorKind::InvalidRequestError, message);
        Self { param: param.map(|param| shortened(param.to_owned())), ..error }
    }

    /// A field within `place` that must be there.
    pub(crate) fn missing(place: &str, name: &str) -> Self {
        let field = format!("{place}.{name}");
        Self::invalid(Some(&field), format!("{field} is missing"))
    }

    /// A field of the API that this server does not have.
    pub(crate) fn unsupported(param: &str) -> Self {
        let error = Self::invalid(Some(param), format!("{param} is not supported by this server"));
        Self { code: Some("unsupported_parameter"), ..error }
    }

    /// A field that the API does not have.
    pub(crate) fn unknown_field(param: &str, message: String) -> Self {
        Self { code: Some("unknown_parameter"), ..Self::invalid(Some(param), message) }
    }

    pub(crate) fn model_not_found(model: &str, served: &[String]) -> Self {
        let message = format!("the model {model:?} is not served here; {}", served.join(", "));
        let error = Self::new(StatusCode::NOT_FOUND, ErrorKind::InvalidRequestError, message);
        Self { code: Some("model_not_found"), param: Some("model".to_owned()), ..error }
    }

    pub(crate) fn response_not_found(param: &str, id: &str) -> Self {
        let message = format!("there is no response {id:?}: it was not stored, or is gone");
        let error = Self::new(StatusCode::NOT_FOUND, ErrorKind::InvalidRequestError, message);
        Self { code: Some("response_not_found"), param: Some(param.to_owned()), ..error }
    }

    pub(crate) fn no_batches() -> Self {
        let message = "this server keeps no files: --batch-dir gives it a folder for them";
        Self::new(StatusCode::NOT_FOUND, ErrorKind::InvalidRequestError, message)
    }

    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, ErrorKind::InvalidRequestError, message)
    }

    pub(crate) fn file_too_large(most: u64) -> Self {
        let message = format!(
            "the file is too large: {most} bytes are accepted, less where a tenant's files leave \
             less room"
        );
        let error =
            Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::InvalidRequestError, message);
        Self { param: Some("file".to_owned()), ..error }
    }

    pub(crate) fn not_found(path: &str, meant: Option<&str>) -> Self {
        let hint = meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
        let message = format!("there is nothing at {path}{hint}");
        Self::new(StatusCode::NOT_FOUND, ErrorKind::InvalidRequestError, message)
    }

    pub(crate) fn wrong_method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not take {method}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, ErrorKind::InvalidRequestError, message)
    }

    pub(crate) fn unauthorized() -> Self {
        let message = "this server needs an API key: Authorization: Bearer KEY";
        let error = Self::new(StatusCode::UNAUTHORIZED, ErrorKind::InvalidRequestError, message);
        Self { code: Some("invalid_api_key"), ..error }
    }

    pub(crate) fn unauthorized_metrics() -> Self {
        let message = "this server has tenants: its metrics need an administrator's key, a \
                       tenant's own need that tenant's key (Authorization: Bearer KEY)";
        Self { message: message.to_owned(), ..Self::unauthorized() }
    }

    pub(crate) fn not_a_tenant() -> Self {
        let message = "an administrator's key speaks for no tenant; use a tenant's key here";
        Self::new(StatusCode::FORBIDDEN, ErrorKind::InvalidRequestError, message)
    }

    pub(crate) fn not_an_admin() -> Self {
        let message = "only an administrator's key may do this";
        Self::new(StatusCode::FORBIDDEN, ErrorKind::InvalidRequestError, message)
    }

    /// There is no room for a single token after a prompt.
    pub(crate) fn prompt_too_long(prompt_len: usize, most: usize) -> Self {
        Self::too_long(None, most, format!("but the prompt has {prompt_len}; shorten it"))
    }

    /// The same where a client has another name for the field at fault.
    pub(crate) fn renamed(self, from: &str, to: &str) -> Self {
        let param = self.param.map(|param| if param == from { to.to_owned() } else { param });
        Self { param, message: self.message.replace(from, to), ..self }
    }

    pub(crate) fn cross_site() -> Self {
        let message = "a web page of another site may not do this: without API keys, requests \
                       must come from no page, or from one of --allowed-origins, and be sent to \
                       an address, to localhost or to the server's --host";
        let error = Self::new(StatusCode::FORBIDDEN, ErrorKind::InvalidRequestError, message);
        Self { code: Some("cross_site"), ..error }
    }

    /// What the server was asked to change stays as it was.
    pub(crate) fn unchanged(error: ReloadError) -> Self {
        let message = error.to_string();
        match error {
            ReloadError::Engine(error) => error.into(),
            ReloadError::NoFile | ReloadError::File(_) | ReloadError::Blocked { .. } => {
                Self { code: Some("not_reloaded"), ..Self::invalid(None, message) }
            }
            ReloadError::Busy => Self { code: Some("not_reloaded"), ..Self::unavailable(message) },
        }
    }

    pub(crate) fn body_too_large(limit: usize) -> Self {
        let message = format!("the request's body is larger than {limit} bytes, the limit here");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::InvalidRequestError, message)
    }

    /// The body has an encoding that is not undone here.
    pub(crate) fn encoded_body(encoding: &str) -> Self {
        let message =
            format!("Content-Encoding: {encoding} is not supported; send the body as it is");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, ErrorKind::InvalidRequestError, message)
    }

    /// The body does not say that it is JSON.
    pub(crate) fn content_type(given: &str) -> Self {
        let message = format!("Content-Type is {given}, but must be application/json");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, ErrorKind::InvalidRequestError, message)
    }

    /// A part of the request did not come in time.
    pub(crate) fn slow(part: &str) -> Self {
        let message = format!("{part} did not come in time");
        let error = Self::new(StatusCode::REQUEST_TIMEOUT, ErrorKind::InvalidRequestError, message);
        Self { code: Some("request_timeout"), ..error }
    }

    pub(crate) fn too_many_connections(limit: usize) -> Self {
        let message = format!("there are {limit} connections already, the limit here");
        Self { code: Some("too_many_connections"), ..Self::unavailable(message) }
    }

    /// So many look at the engine already.
    pub(crate) fn too_many_watchers(limit: usize) -> Self {
        let message = format!("{limit} clients watch the engine already, the limit here");
        Self { code: Some("too_many_watchers"), ..Self::unavailable(message) }
    }

    /// There is no memory for the body now.
    pub(crate) fn too_many_bodies() -> Self {
        let message = "too many large request bodies are being received; try again";
        Self { code: Some("overloaded"), ..Self::unavailable(message) }
    }

    /// The tenant has so many requests before its own that are not tokenized yet.
    pub(crate) fn too_much_work(waiting: usize) -> Self {
        let message = format!("{waiting} requests wait to be parsed or tokenized; try again");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, ErrorKind::RateLimitError, message);
        Self { code: Some("rate_limit_exceeded"), ..error }
    }

    /// What is given is longer than the context of so many tokens. It begins with OpenAI's
    /// words, by which clients know it.
    pub(crate) fn too_long(param: Option<&str>, most: usize, what: impl Display) -> Self {
        let message = format!("This model's maximum context length is {most} tokens, {what}");
        Self { code: Some(CONTEXT_LENGTH), ..Self::invalid(param, message) }
    }

    /// Names the field that is too long, where an error is about the context.
    pub(crate) fn within(self, param: &str) -> Self {
        if self.code == Some(CONTEXT_LENGTH) && self.param.is_none() {
            return Self { param: Some(param.to_owned()), ..self };
        }
        self
    }

    /// What a field asks of an answer's form cannot be had.
    pub(crate) fn of_grammar(field: &str, error: &GrammarError) -> Self {
        let message = format!("{field}: {error}");
        let shaped = match error {
            GrammarError::Busy => Self { code: Some("overloaded"), ..Self::unavailable(message) },
            GrammarError::Bug => Self::bug(),
            _ => Self::invalid(Some(field), message),
        };
        Self { cause: Some(Box::new(Cause::Grammar(error.clone()))), ..shaped }
    }

    /// Too many grammars were to be compiled before this request's.
    pub(crate) fn late_grammar(patience: Duration) -> Self {
        let message = format!("the grammar was not compiled within {} s", patience.as_secs());
        Self { code: Some("overloaded"), ..Self::unavailable(message) }
    }

    pub(crate) fn bug() -> Self {
        Self::internal("a bug in the server; its log says more")
    }

    /// The whole response in HTTP/1.1, for a client that hyper does not serve.
    pub(crate) fn on_the_wire(&self) -> Vec<u8> {
        let body = serde_json::to_string(&self.json()).expect("its keys are strings");
        let reason = self.status.canonical_reason().unwrap_or_default();
        let retry = if is_busy(self.status) {
            format!("retry-after: {}\r\n", self.retry_after)
        } else {
            String::new()
        };
        format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
             {retry}connection: close\r\n\r\n{body}",
            self.status.as_str(),
            body.len(),
        )
        .into_bytes()
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::ServerError, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorKind::ServerError, message)
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Its type and its code, which quote nothing of the request.
    pub(crate) fn names(&self) -> (&'static str, Option<&'static str>) {
        (self.kind.name(), self.code)
    }

    /// The field at fault, the message, and what the error was before.
    pub(crate) fn into_parts(self) -> (Option<String>, String, Option<Cause>) {
        (self.param, self.message, self.cause.map(|cause| *cause))
    }

    /// The body.
    pub(crate) fn json(&self) -> ErrorBody<'_> {
        let Self { kind, code, param, message, .. } = self;
        ErrorBody {
            error: ErrorDetail { message, kind: *kind, param: param.as_deref(), code: *code },
        }
    }
}

fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_MESSAGE_CHARS) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Whether a client may find it otherwise soon.
fn is_busy(status: StatusCode) -> bool {
    [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&status)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        if is_busy(self.status) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(self.retry_after));
        }
        if self.status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            // A body may have no encoding either.
            response.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // For those who write it in another shape.
        response.extensions_mut().insert(self);
        response
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        let cause = Some(Box::new(Cause::Submit(error.clone())));
        let shaped = match error {
            SubmitError::Params(invalid) => Self::invalid(Some(invalid.field), message),
            SubmitError::Unfit(Unfit::EmptyPrompt) | SubmitError::UnknownToken { .. } => {
                Self::invalid(Some("prompt"), message)
            }
            SubmitError::Unfit(Unfit::TooLong { .. }) => {
                Self { code: Some(CONTEXT_LENGTH), ..Self::invalid(None, message) }
            }
            SubmitError::Unfit(Unfit::NeverFits { .. } | Unfit::NoTokens) => {
                Self::invalid(Some("max_tokens"), message)
            }
            SubmitError::QueueFull { retry_after, .. } => {
                let error =
                    Self::new(StatusCode::TOO_MANY_REQUESTS, ErrorKind::RateLimitError, message);
                let retry_after = retry_after.as_secs();
                Self { code: Some("rate_limit_exceeded"), retry_after, ..error }
            }
            SubmitError::Overloaded { reason, retry_after } => {
                RequestError::Overloaded { reason, retry_after }.into()
            }
            // Not a 429: to try again would never help.
            SubmitError::ExceedsMinute { choices, prompt_tokens, tokens_per_minute, .. } => {
                // No maximum helps where the prompts leave no room for a token each.
                let is_room = (prompt_tokens + choices) as u64 <= tokens_per_minute;
                Self {
                    code: Some("rate_limit_exceeded"),
                    ..Self::invalid(is_room.then_some("max_tokens"), message)
                }
            }
            SubmitError::Draining | SubmitError::EngineLost => Self::unavailable(message),
        };
        Self { cause, ..shaped }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let message = error.to_string();
        let cause = Some(Box::new(Cause::Request(error.clone())));
        let shaped = match error {
            RequestError::NonFiniteLogits | RequestError::StepFailed(_) => Self::internal(message),
            RequestError::Refused(_) | RequestError::NothingAllowed => Self::invalid(None, message),
            RequestError::EngineLost => Self::unavailable(message),
            RequestError::NotReady { .. } => {
                Self { code: Some("overloaded"), ..Self::unavailable(message) }
            }
            RequestError::CannotRun { .. } => Self::invalid(None, message),
            RequestError::TimedOut { .. } => {
                let error = Self::new(StatusCode::GATEWAY_TIMEOUT, ErrorKind::ServerError, message);
                Self { code: Some("timeout"), ..error }
            }
            RequestError::Overloaded { reason, retry_after } => {
                let error = match reason {
                    Overload::QueueFull { .. }
                    | Overload::EngineQueueFull
                    | Overload::TokensPerMinute { .. } => Self {
                        code: Some("rate_limit_exceeded"),
                        ..Self::new(
                            StatusCode::TOO_MANY_REQUESTS,
                            ErrorKind::RateLimitError,
                            message,
                        )
                    },
                    Overload::QueueTooLong { .. }
                    | Overload::TooLate { .. }
                    | Overload::EndsTooLate { .. }
                    | Overload::TooSlow { .. }
                    | Overload::Promised
                    | Overload::Unmeasured
                    | Overload::Late { .. } => {
                        Self { code: Some("overloaded"), ..Self::unavailable(message) }
                    }
                };
                Self { retry_after: retry_after.as_secs(), ..error }
            }
        };
        Self { cause, ..shaped }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        let message = error.to_string();
        match error {
            TextError::NoChatTemplate | TextError::InvalidMessages(_) => {
                Self::invalid(Some("messages"), message)
            }
            TextError::InvalidTemplateArguments(_) => {
                Self::invalid(Some("chat_template_kwargs"), message)
            }
            TextError::TooManyTokens { most } => {
                Self::too_long(None, most, "but the prompt has more; shorten it")
            }
            TextError::Encode(_) | TextError::Decode(_) => Self::invalid(None, message),
            // A template that refuses messages raises InvalidMessages; other failures are its
            // own faults, or the server's.
            TextError::TemplateFailed(_)
            | TextError::Io { .. }
            | TextError::Invalid { .. }
            | TextError::VocabularyMismatch { .. } => Self::internal(message),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::NotFound { what, .. } => {
                let error =
                    Self::new(StatusCode::NOT_FOUND, ErrorKind::InvalidRequestError, message);
                Self { param: Some(format!("{what}_id")), ..error }
            }
            StoreError::InUse { .. } => Self::conflict(message),
            StoreError::Full { .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, ErrorKind::RateLimitError, message)
            }
            // Clients are not told where the folder is.
            StoreError::Io { .. } | StoreError::Damaged { .. } => {
                tracing::error!("files and batches: {message}");
                Self::internal("the server's disk failed; its log says more")
            }
        }
    }
}

impl From<StopError> for ApiError {
    fn from(error: StopError) -> Self {
        Self::invalid(Some("stop"), error.to_string())
    }
}
