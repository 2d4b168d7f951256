//! Endpoints for those who run the server.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use sconce_engine::Health;
use sconce_tenants::{Principal, TenantEntry};
use serde_json::json;

use crate::{caller::AsAdmin, error::ApiError, middleware, state::AppState};

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

/// Reads the tenants' file again.
pub(crate) async fn reload(
    State(state): State<AppState>,
    _: AsAdmin,
) -> Result<Response, ApiError> {
    let count = state.config.tenants.reload(&state.engine).await;
    let count = count.map_err(ApiError::unchanged)?;
    Ok(Json(json!({ "status": "ok", "tenants": count })).into_response())
}

/// The tenants as they are, without their keys.
pub(crate) async fn tenants(caller: AsAdmin) -> Response {
    let describe = |entry: &TenantEntry| {
        let TenantEntry { tenant, models, priorities } = entry;
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        json!({
            "name": tenant.name,
            "weight": tenant.weight,
            "min_share": tenant.min_share,
            "models": models,
            "priorities": priorities,
            "limits": {
                "max_running": tenant.max_running,
                "max_queued": tenant.max_queued,
                "max_kv_blocks": tenant.max_kv_blocks,
                "tokens_per_minute": tenant.tokens_per_minute,
            },
            "slo": {
                "ttft_seconds": seconds(tenant.ttft_target),
                "tpot_seconds": seconds(tenant.tpot_target),
            },
        })
    };
    let tenants: Vec<_> = caller.tenants.iter().map(describe).collect();
    Json(json!({ "object": "list", "data": tenants })).into_response()
}

/// Empties the prefix cache.
pub(crate) async fn reset_prefix_cache(State(state): State<AppState>, _: AsAdmin) -> Response {
    state.engine.reset_prefix_cache();
    Json(json!({ "status": "ok" })).into_response()
}

/// Requests that are not answered yet, as vLLM counts them.
pub(crate) async fn load(State(state): State<AppState>) -> Response {
    Json(json!({ "server_load": state.engine.unfinished() })).into_response()
}

pub(crate) async fn version() -> Response {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") })).into_response()
}

/// Open to all where no tenants are configured; otherwise an administrator gets everything
/// and a tenant its own series, since whole-engine counts are made of others' requests.
pub(crate) async fn metrics(
    State(state): State<AppState>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let tenants = state.config.tenants.current();
    let metrics = state.engine.metrics();
    let text = if tenants.needs_key() {
        match tenants.by_key(middleware::key_of(&headers)) {
            Some(Principal::Admin) => metrics.render(true),
            Some(Principal::Tenant(id)) => {
                let name = tenants.get(id).map_or("", |entry| &*entry.tenant.name);
                metrics.render_tenant(name)
            }
            None => return Err(ApiError::unauthorized_metrics()),
        }
    } else {
        metrics.render(true)
    };
    let headers = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((headers, text).into_response())
}
