//! Errors as clients see them: the one place that knows HTTP status codes.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use sconce_engine::{RequestError, SubmitError};
use sconce_text::{StopError, TextError};
use serde_json::{Value, json};

/// Seconds after which a refused client may try again. Short: the queue is
/// bounded, and a seat may be free a moment later.
const RETRY_AFTER_SECONDS: u64 = 1;

/// Characters of a message at most: it may quote what the client sent.
const MAX_MESSAGE_CHARS: usize = 1000;

/// An error in OpenAI's shape.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code: None, param: None, message: shortened(message.into()) }
    }

    /// The request is wrong; `param` is the field at fault.
    pub(crate) fn invalid(param: Option<&str>, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message);
        Self { param: param.map(|param| shortened(param.to_owned())), ..error }
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
        let error = Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message);
        Self { code: Some("model_not_found"), param: Some("model".to_owned()), ..error }
    }

    pub(crate) fn not_found(path: &str) -> Self {
        let message = format!("there is nothing at {path}");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
    }

    pub(crate) fn wrong_method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not take {method}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
    }

    pub(crate) fn unauthorized() -> Self {
        let message = "this server needs an API key: Authorization: Bearer KEY";
        let error = Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message);
        Self { code: Some("invalid_api_key"), ..error }
    }

    pub(crate) fn body_too_large(limit: usize) -> Self {
        let message = format!("the request's body is larger than {limit} bytes, the limit here");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// The body.
    pub(crate) fn json(&self) -> Value {
        json!({ "error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }
}

fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_MESSAGE_CHARS) {
        text.truncate(end);
        text.push('…');
    }
    text
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        let busy = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        if busy.contains(&self.status) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
        }
        response
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::Params(invalid) => Self::invalid(Some(invalid.field), message),
            SubmitError::EmptyPrompt | SubmitError::UnknownToken { .. } => {
                Self::invalid(Some("prompt"), message)
            }
            SubmitError::TooLong { .. } => {
                Self { code: Some("context_length_exceeded"), ..Self::invalid(None, message) }
            }
            SubmitError::NeverFits { .. } => Self::invalid(Some("max_tokens"), message),
            SubmitError::QueueFull { .. } => {
                let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
                Self { code: Some("rate_limit_exceeded"), ..error }
            }
            SubmitError::Draining | SubmitError::EngineLost => Self::unavailable(message),
        }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let message = error.to_string();
        match error {
            RequestError::NonFiniteLogits | RequestError::StepFailed(_) => Self::internal(message),
            RequestError::Refused(_) => Self::invalid(None, message),
            RequestError::EngineLost => Self::unavailable(message),
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        let message = error.to_string();
        match error {
            TextError::NoChatTemplate | TextError::InvalidMessages(_) => {
                Self::invalid(Some("messages"), message)
            }
            TextError::Encode(_) | TextError::Decode(_) | TextError::TemplateFailed(_) => {
                Self::invalid(None, message)
            }
            TextError::Io { .. }
            | TextError::Invalid { .. }
            | TextError::VocabularyMismatch { .. } => Self::internal(message),
        }
    }
}

impl From<StopError> for ApiError {
    fn from(error: StopError) -> Self {
        Self::invalid(Some("stop"), error.to_string())
    }
}
