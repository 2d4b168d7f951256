//! What happens around every handler.

use std::time::Instant;

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use crate::{
    caller::{ClientRequestId, Identity},
    error::ApiError,
    state::AppState,
};

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Finds out who a request comes from; refuses it without a valid key, where one is needed.
pub(crate) async fn authorize(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    let keys = &state.config.api_keys;
    let given = key_of(request.headers());
    let tenants = state.config.tenants.current();
    if tenants.needs_key() {
        let speaker = tenants.by_key(given);
        if speaker.is_none() {
            return ApiError::unauthorized().into_response();
        }
        request.extensions_mut().insert(Identity { speaker, tenants });
        return next.run(request).await;
    }
    // Every key is compared, so that time tells nothing of which is near. An
    // empty key, such as a trailing comma leaves, opens nothing.
    let known = keys.iter().fold(false, |known, key| known | same(key, given)) && !given.is_empty();
    if keys.is_empty() || known {
        request.extensions_mut().insert(Identity { speaker: None, tenants });
        next.run(request).await
    } else {
        ApiError::unauthorized().into_response()
    }
}

/// The key that a request brings; empty if it brings none.
pub(crate) fn key_of(headers: &HeaderMap) -> &str {
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default()
}

/// Compares in a time that depends on the lengths only.
fn same(key: &str, given: &str) -> bool {
    let differences = key.bytes().zip(given.bytes()).fold(0, |acc, (a, b)| acc | (a ^ b));
    key.len() == given.len() && differences == 0
}

/// Gives back a sane `X-Request-Id`, or a new one.
pub(crate) async fn request_id(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    let sane = |value: &&HeaderValue| {
        value.len() <= 128 && !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    let given = request.headers().get(&REQUEST_ID).filter(sane).cloned();
    let id = given.or_else(|| HeaderValue::from_str(&state.next_id("req")).ok());
    if let Some(text) = id.as_ref().and_then(|id| id.to_str().ok()) {
        request.extensions_mut().insert(ClientRequestId(text.into()));
    }
    let mut response = next.run(request).await;
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID.clone(), id);
    }
    response
}

/// Counts requests by route, never by path: a client cannot make up labels.
pub(crate) async fn count(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = match request.method().as_str() {
        known @ ("GET" | "POST" | "HEAD" | "OPTIONS" | "PUT" | "DELETE") => known.to_owned(),
        _ => "other".to_owned(),
    };
    let handler = request.extensions().get::<MatchedPath>().map(|path| match path.as_str() {
        "/" => "/".to_owned(),
        path => path.trim_end_matches('/').to_owned(),
    });
    let handler = handler.unwrap_or_else(|| "none".to_owned());
    let response = next.run(request).await;
    let metrics = state.engine.metrics();
    let status = response.status();
    metrics.http_requests.with_label_values(&[handler.as_str(), &method, status.as_str()]).inc();
    let seconds = started.elapsed().as_secs_f64();
    metrics.http_duration.with_label_values(&[handler.as_str(), &method]).observe(seconds);
    response
}
