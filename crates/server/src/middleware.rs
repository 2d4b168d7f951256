//! What happens around every handler.

use std::{borrow::Cow, sync::Arc, time::Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use sconce_tenants::Principal;
use sconce_types::TenantId;

use crate::{
    access_log::RequestStats,
    caller::{ClientRequestId, Identity, OnBehalf},
    error::ApiError,
    state::AppState,
    traces::RequestTrace,
};

pub(crate) static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

static API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Finds out who a request comes from; refuses it without a valid key, where one is needed.
pub(crate) async fn authorize(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    let tenants = state.config.tenants.current();
    let keys = &state.config.api_keys;
    let given = key_of(request.headers());
    let own = request.extensions().get::<OnBehalf>().map(|&OnBehalf(id)| Principal::Tenant(id));
    let speaker = own.or_else(|| tenants.by_key(&given));
    let is_known = if tenants.needs_key() || own.is_some() {
        speaker.is_some()
    } else {
        keys.is_empty() || keys.contains(&given)
    };
    if !is_known {
        return ApiError::unauthorized().into_response();
    }
    drop(given);
    let extensions = request.extensions();
    let stats = extensions.get::<Arc<RequestStats>>();
    let trace = extensions.get::<Arc<RequestTrace>>();
    if stats.is_some() || trace.is_some() {
        let id = match speaker {
            Some(Principal::Tenant(id)) => Some(id),
            Some(Principal::Admin) => None,
            None => Some(TenantId(0)),
        };
        let entry = id.and_then(|id| tenants.get(id));
        let name = entry.map_or_else(|| "(admin)".into(), |entry| entry.tenant.name.clone());
        if let Some(trace) = trace {
            trace.note_tenant(&name);
        }
        if let Some(stats) = stats {
            stats.note_tenant(name);
        }
    }
    // Without keys a browser's user is all that tells their own requests from other sites'.
    let is_open = !tenants.needs_key() && keys.is_empty();
    let origins = is_open.then(|| Arc::clone(&state.origins));
    request.extensions_mut().insert(Identity { speaker, tenants, origins });
    next.run(request).await
}

/// The key that a request brings, empty if it brings none: `Authorization: Bearer KEY`,
/// the scheme in any case and with any white space after it, or Anthropic's `x-api-key: KEY`. What is not UTF-8 is taken
/// for Latin-1, which some clients encode headers in.
pub(crate) fn key_of(headers: &HeaderMap) -> Cow<'_, [u8]> {
    let key = headers.get(AUTHORIZATION).and_then(|value| {
        let value = value.as_bytes().trim_ascii();
        let end = value.iter().position(u8::is_ascii_whitespace)?;
        let (scheme, key) = value.split_at(end);
        scheme.eq_ignore_ascii_case(b"Bearer").then(|| key.trim_ascii_start())
    });
    let other = || headers.get(&API_KEY).map(|value| value.as_bytes().trim_ascii());
    let key = key.or_else(other).unwrap_or_default();
    if std::str::from_utf8(key).is_ok() {
        return Cow::Borrowed(key);
    }
    Cow::Owned(key.iter().copied().map(char::from).collect::<String>().into_bytes())
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
    let id = given.or_else(|| HeaderValue::from_str(&state.next_id("req-")).ok());
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
