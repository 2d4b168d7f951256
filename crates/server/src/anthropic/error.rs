//! Errors in the Messages API's shape.

use axum::{
    Json,
    extract::Request,
    http::{HeaderName, HeaderValue, StatusCode},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{caller::ClientRequestId, error::ApiError, word::word};

word!(ErrorType = "error");

/// Anthropic's name for `x-request-id`.
static REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Where the API lives.
const PREFIX: &str = "/v1/messages";

/// Gives errors below the API's path its shape, whoever they come from.
pub(crate) async fn shape(request: Request, next: Next) -> Response {
    if !request.uri().path().starts_with(PREFIX) {
        return next.run(request).await;
    }
    let id = request.extensions().get::<ClientRequestId>().map(|id| id.0.to_string());
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions().get::<ApiError>() {
        let body =
            MessageError { kind: ErrorType::Word, error: detail(error), request_id: id.clone() };
        let shaped = Json(body).into_response();
        let (mut head, _) = response.into_parts();
        head.headers.remove(axum::http::header::CONTENT_LENGTH);
        response = Response::from_parts(head, shaped.into_body());
    }
    if let Some(id) = id.and_then(|id| HeaderValue::from_str(&id).ok()) {
        response.headers_mut().insert(REQUEST_ID.clone(), id);
    }
    response
}

/// An error in the Messages API's shape.
#[derive(Serialize, ToSchema)]
pub(crate) struct MessageError {
    #[serde(rename = "type")]
    #[schema(inline)]
    kind: ErrorType,
    error: ErrorDetail,
    /// What the server's log calls the request.
    #[schema(required)]
    request_id: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = MessageErrorDetail)]
pub(crate) struct ErrorDetail {
    #[serde(rename = "type")]
    #[schema(inline)]
    kind: ErrorKind,
    message: String,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ErrorKind {
    AuthenticationError,
    PermissionError,
    NotFoundError,
    RequestTooLarge,
    RateLimitError,
    OverloadedError,
    TimeoutError,
    ApiError,
    InvalidRequestError,
}

/// What an error's body or a stream's end says.
pub(super) fn detail(error: &ApiError) -> ErrorDetail {
    let kind = match error.status() {
        StatusCode::UNAUTHORIZED => ErrorKind::AuthenticationError,
        StatusCode::FORBIDDEN => ErrorKind::PermissionError,
        StatusCode::NOT_FOUND => ErrorKind::NotFoundError,
        StatusCode::PAYLOAD_TOO_LARGE => ErrorKind::RequestTooLarge,
        StatusCode::TOO_MANY_REQUESTS => ErrorKind::RateLimitError,
        StatusCode::SERVICE_UNAVAILABLE => ErrorKind::OverloadedError,
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => ErrorKind::TimeoutError,
        status if status.is_server_error() => ErrorKind::ApiError,
        _ => ErrorKind::InvalidRequestError,
    };
    ErrorDetail { kind, message: error.message().to_owned() }
}
