//! Endpoints for those who run the server.

use axum::{
    Json,
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use sconce_engine::Health;
use serde_json::json;

use crate::{error::ApiError, state::AppState};

/// Whether the engine's loop turns: a heartbeat of it, not of the HTTP server.
pub(crate) async fn health(State(state): State<AppState>) -> Result<Response, ApiError> {
    match state.engine.health(state.config.step_patience) {
        Health::Alive => Ok(Json(json!({ "status": "ok" })).into_response()),
        Health::Stalled(since) => Err(ApiError::unavailable(format!(
            "a step has been running for {:.0} s",
            since.as_secs_f64()
        ))),
        Health::Restarting => Err(ApiError::unavailable("the engine is starting again")),
        Health::Lost => Err(ApiError::unavailable("the engine has stopped")),
        Health::DeviceLost => Err(ApiError::unavailable("the device is lost")),
    }
}

/// Whether new requests are taken.
pub(crate) async fn ready(state: State<AppState>) -> Result<Response, ApiError> {
    if state.engine.is_draining() {
        return Err(ApiError::unavailable("the server is shutting down"));
    }
    health(state).await
}

/// Empties the prefix cache.
pub(crate) async fn reset_prefix_cache(State(state): State<AppState>) -> Response {
    state.engine.reset_prefix_cache();
    Json(json!({ "status": "ok" })).into_response()
}

pub(crate) async fn version() -> Response {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") })).into_response()
}

pub(crate) async fn metrics(State(state): State<AppState>) -> Response {
    let text = state.engine.metrics().render();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
