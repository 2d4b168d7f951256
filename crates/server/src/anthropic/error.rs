//! Errors in the Messages API's shape.

use axum::{
    Json,
    extract::Request,
    http::{HeaderName, HeaderValue, StatusCode},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};

use crate::{caller::ClientRequestId, error::ApiError};

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
        let mut body = body(error);
        body["request_id"] = id.clone().into();
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

/// An error's body, or what a stream ends with.
pub(super) fn body(error: &ApiError) -> Value {
    let kind = match error.status() {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => "timeout_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    };
    json!({ "type": "error", "error": { "type": kind, "message": error.message() } })
}
