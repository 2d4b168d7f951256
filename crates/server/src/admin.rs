//! Endpoints for those who run the server.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use sconce_engine::{Health, StepTimes};
use sconce_tenants::{Principal, TenantEntry};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    caller::AsAdmin, error::ApiError, middleware, openai::models::List, state::AppState, word::word,
};

word!(Okay = "ok");

/// It is well, or done.
#[derive(Serialize, ToSchema)]
pub(crate) struct Status {
    #[schema(inline)]
    status: Okay,
}

const OK: Json<Status> = Json(Status { status: Okay::Word });

/// The tenants' file was read.
#[derive(Serialize, ToSchema)]
pub(crate) struct Reloaded {
    #[schema(inline)]
    status: Okay,
    /// How many there are now.
    tenants: usize,
}

/// The tenants, without their keys.
#[derive(Serialize, ToSchema)]
pub(crate) struct TenantList {
    #[schema(inline)]
    object: List,
    data: Vec<TenantDescription>,
}

/// A tenant; null is no limit.
#[derive(Serialize, ToSchema)]
#[schema(as = Tenant)]
struct TenantDescription {
    name: String,
    weight: u32,
    /// The part of the engine's time that it can count on.
    min_share: f64,
    /// The names that it may use; null for all.
    #[schema(required)]
    models: Option<Vec<String>>,
    /// Numbers of its priorities, by their names.
    priorities: BTreeMap<String, i32>,
    limits: TenantLimits,
    slo: TenantTargets,
}

#[derive(Serialize, ToSchema)]
struct TenantLimits {
    #[schema(required)]
    max_running: Option<usize>,
    #[schema(required)]
    max_queued: Option<usize>,
    /// Blocks of the KV cache.
    #[schema(required)]
    max_kv_blocks: Option<usize>,
    #[schema(required)]
    tokens_per_minute: Option<u64>,
}

#[derive(Serialize, ToSchema)]
struct TenantTargets {
    /// Until the first token.
    #[schema(required)]
    ttft_seconds: Option<f64>,
    /// For each token after it.
    #[schema(required)]
    tpot_seconds: Option<f64>,
}

/// The engine's last steps, the oldest first.
#[derive(Serialize, ToSchema)]
pub(crate) struct StepList {
    #[schema(inline)]
    object: List,
    data: Vec<StepPhases>,
}

/// When the phases of a step began and ended, in microseconds since the engine's start. Phases of
/// steps that overlap lie beside each other.
#[derive(Serialize, ToSchema)]
struct StepPhases {
    /// Counted from 0.
    step: u64,
    sequences: usize,
    /// Tokens that it computed.
    tokens: usize,
    /// The scheduler began.
    scheduled_us: f64,
    /// The executor began to plan the step and to send its inputs to the device.
    launched_us: f64,
    /// It began to launch kernels.
    staged_us: f64,
    /// All was launched.
    sampled_us: f64,
    /// The engine began to wait for results.
    awaited_us: f64,
    /// They were there.
    returned_us: f64,
    /// They were handed out.
    delivered_us: f64,
    /// What the device took, by its own clock; null where it has none.
    #[schema(required)]
    device_us: Option<f64>,
}

impl From<StepTimes> for StepPhases {
    fn from(times: StepTimes) -> Self {
        let us = |time: Duration| time.as_nanos() as f64 / 1e3;
        Self {
            step: times.step,
            sequences: times.num_sequences,
            tokens: times.num_tokens,
            scheduled_us: us(times.scheduled),
            launched_us: us(times.launched),
            staged_us: us(times.staged),
            sampled_us: us(times.sampled),
            awaited_us: us(times.awaited),
            returned_us: us(times.returned),
            delivered_us: us(times.delivered),
            device_us: times.device.map(us),
        }
    }
}

/// How much there is to do.
#[derive(Serialize, ToSchema)]
pub(crate) struct Load {
    /// Requests that are not answered yet.
    server_load: usize,
}

/// The server's version.
#[derive(Serialize, ToSchema)]
pub(crate) struct Version {
    version: &'static str,
}

/// Whether the engine works
///
/// A heartbeat of the engine's loop, not of the HTTP server.
#[utoipa::path(
    get, path = "/health", tag = "Operation", operation_id = "health", security(()),
    responses((status = 200, description = "It works", body = Status)),
)]
pub(crate) async fn health(State(state): State<AppState>) -> Result<Json<Status>, ApiError> {
    match state.engine.health(state.config.step_patience) {
        Health::Alive => Ok(OK),
        Health::Stalled(since) => Err(ApiError::unavailable(format!(
            "a step has been running for {:.0} s",
            since.as_secs_f64()
        ))),
        Health::Restarting => Err(ApiError::unavailable("the engine is starting again")),
        Health::Lost => Err(ApiError::unavailable("the engine has stopped")),
        Health::DeviceLost => Err(ApiError::unavailable("the device is lost")),
    }
}

/// The same as `/health`
#[utoipa::path(
    get, path = "/ping", tag = "Operation", operation_id = "ping", security(()),
    responses((status = 200, description = "It works", body = Status)),
)]
pub(crate) async fn ping(state: State<AppState>) -> Result<Json<Status>, ApiError> {
    health(state).await
}

/// Whether new requests are taken
#[utoipa::path(
    get, path = "/ready", tag = "Operation", operation_id = "ready", security(()),
    responses((status = 200, description = "They are", body = Status)),
)]
pub(crate) async fn ready(state: State<AppState>) -> Result<Json<Status>, ApiError> {
    if state.engine.is_draining() {
        return Err(ApiError::unavailable("the server is shutting down"));
    }
    health(state).await
}

/// Read the tenants' file again
///
/// Requests that run are not touched. If anything is wrong, everything stays as it was.
#[utoipa::path(
    post, path = "/admin/reload", tag = "Administration", operation_id = "reload",
    responses((status = 200, description = "It was read", body = Reloaded)),
)]
pub(crate) async fn reload(
    State(state): State<AppState>,
    _: AsAdmin,
) -> Result<Json<Reloaded>, ApiError> {
    let count = state.config.tenants.reload(&state.engine).await;
    let count = count.map_err(ApiError::unchanged)?;
    Ok(Json(Reloaded { status: Okay::Word, tenants: count }))
}

/// List the tenants
#[utoipa::path(
    get, path = "/admin/tenants", tag = "Administration", operation_id = "listTenants",
    responses((status = 200, description = "The tenants, without their keys", body = TenantList)),
)]
pub(crate) async fn tenants(caller: AsAdmin) -> Json<TenantList> {
    let data = caller.tenants.iter().map(TenantDescription::new).collect();
    Json(TenantList { object: List::Word, data })
}

impl TenantDescription {
    fn new(entry: &TenantEntry) -> Self {
        let TenantEntry { tenant, models, priorities } = entry;
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        Self {
            name: tenant.name.to_string(),
            weight: tenant.weight,
            min_share: tenant.min_share,
            models: models.clone(),
            priorities: priorities.clone(),
            limits: TenantLimits {
                max_running: tenant.max_running,
                max_queued: tenant.max_queued,
                max_kv_blocks: tenant.max_kv_blocks,
                tokens_per_minute: tenant.tokens_per_minute,
            },
            slo: TenantTargets {
                ttft_seconds: seconds(tenant.ttft_target),
                tpot_seconds: seconds(tenant.tpot_target),
            },
        }
    }
}

/// When the last steps' phases began and ended
///
/// Of the last 1,024 steps; `sconce bench --profile` draws them.
#[utoipa::path(
    get, path = "/admin/steps", tag = "Administration", operation_id = "listSteps",
    responses((status = 200, description = "The steps, the oldest first", body = StepList)),
)]
pub(crate) async fn steps(State(state): State<AppState>, _: AsAdmin) -> Json<StepList> {
    let data = state.engine.step_times().into_iter().map(StepPhases::from).collect();
    Json(StepList { object: List::Word, data })
}

/// Empty the prefix cache
#[utoipa::path(
    post, path = "/reset_prefix_cache", tag = "Administration", operation_id = "resetPrefixCache",
    responses((status = 200, description = "It is emptied", body = Status)),
)]
pub(crate) async fn reset_prefix_cache(State(state): State<AppState>, _: AsAdmin) -> Json<Status> {
    state.engine.reset_prefix_cache();
    OK
}

/// How much there is to do
#[utoipa::path(
    get, path = "/load", tag = "Operation", operation_id = "load", security(()),
    responses((status = 200, description = "As vLLM counts it", body = Load)),
)]
pub(crate) async fn load(State(state): State<AppState>) -> Json<Load> {
    Json(Load { server_load: state.engine.unfinished() })
}

/// The server's version
#[utoipa::path(
    get, path = "/version", tag = "Operation", operation_id = "version", security(()),
    responses((status = 200, description = "The version", body = Version)),
)]
pub(crate) async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION") })
}

/// Counters, gauges and histograms, for Prometheus
///
/// Open to all where no tenants are configured; otherwise an administrator gets everything
/// and a tenant its own series, since whole-engine counts are made of others' requests.
#[utoipa::path(
    get, path = "/metrics", tag = "Operation", operation_id = "metrics",
    security((), ("bearer" = []), ("x-api-key" = [])),
    responses((status = 200, description = "In Prometheus' text format", body = String,
        content_type = "text/plain")),
)]
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
