//! `/v1/capacity`: what the caller may expect now.
#![expect(unused_qualifications, reason = "utoipa writes them for the query")]

use std::time::Duration;

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use sconce_types::TenantId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{caller::AsAnyone, error::ApiError, state::AppState, word::word};

word!(CapacityObject = "capacity");

/// What the caller may expect now; null is what is not known or not set.
#[derive(Serialize, ToSchema)]
pub(crate) struct Capacity {
    #[schema(inline)]
    object: CapacityObject,
    /// The tenant's name.
    #[schema(required)]
    tenant: Option<String>,
    /// Whether a request would be taken.
    accepting: bool,
    /// When to come again, if not.
    #[schema(required)]
    retry_after_seconds: Option<f64>,
    /// Of a request of so many tokens.
    expected: Expected,
    /// What the tenant is promised.
    targets: Targets,
    /// Those of the caller.
    requests: Requests,
    engine: EngineCapacity,
}

#[derive(Serialize, ToSchema)]
#[schema(as = CapacityExpected)]
struct Expected {
    prompt_tokens: usize,
    /// Until the first token.
    #[schema(required)]
    ttft_seconds: Option<f64>,
    /// For each token after it.
    #[schema(required)]
    tpot_seconds: Option<f64>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = CapacityTargets)]
struct Targets {
    #[schema(required)]
    ttft_seconds: Option<f64>,
    #[schema(required)]
    tpot_seconds: Option<f64>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = CapacityRequests)]
struct Requests {
    running: usize,
    waiting: usize,
    #[schema(required)]
    max_running: Option<usize>,
    #[schema(required)]
    max_waiting: Option<usize>,
}

/// Of the engine a tenant is told its share only: the rest would show it what others do.
#[derive(Serialize, ToSchema)]
struct EngineCapacity {
    /// The part of the engine's time that the caller would have.
    share: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    running: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_running: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_waiting: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_blocks_free: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_blocks: Option<usize>,
}

/// The prompt's length where the query does not give one.
const DEFAULT_PROMPT_TOKENS: usize = 256;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct CapacityQuery {
    /// Of the request to come; 256 if not given.
    #[param(minimum = 1)]
    prompt_tokens: Option<usize>,
    /// An administrator may ask for a tenant's; a tenant for its own only.
    tenant: Option<String>,
}

/// What a request may expect now
#[utoipa::path(
    get, path = "/v1/capacity", tag = "Operation", operation_id = "capacity",
    params(CapacityQuery),
    responses((status = 200, description = "What the caller may expect", body = Capacity)),
)]
pub(crate) async fn capacity(
    State(state): State<AppState>,
    caller: AsAnyone,
    query: Result<Query<CapacityQuery>, QueryRejection>,
) -> Result<Json<Capacity>, ApiError> {
    let Query(query) =
        query.map_err(|error| ApiError::invalid(Some("prompt_tokens"), error.body_text()))?;
    let limits = *state.engine.limits();
    let most = limits.scheduler.max_model_len - 1;
    let prompt_tokens = query.prompt_tokens.unwrap_or(DEFAULT_PROMPT_TOKENS.min(most));
    if prompt_tokens == 0 || prompt_tokens > most {
        let message = format!("prompt_tokens is {prompt_tokens}, but must be from 1 to {most}");
        return Err(ApiError::invalid(Some("prompt_tokens"), message));
    }
    // Counts for the whole engine would show a tenant what others do.
    let sees_all = match &caller {
        AsAnyone::Tenant(caller) => !caller.is_configured(),
        AsAnyone::Admin(_) => true,
    };
    let entry = match &caller {
        AsAnyone::Tenant(caller) => {
            let entry = caller.entry().map(|entry| &entry.tenant);
            if query.tenant.is_some() && query.tenant.as_deref() != entry.map(|t| &*t.name) {
                return Err(ApiError::not_an_admin());
            }
            entry
        }
        AsAnyone::Admin(caller) => match &query.tenant {
            None => None,
            Some(name) => {
                let known = caller.tenants.iter().find(|entry| *entry.tenant.name == **name);
                let unknown = || {
                    let message = format!("tenant is {name:?}, but there is none of this name");
                    ApiError::invalid(Some("tenant"), message)
                };
                Some(&known.ok_or_else(unknown)?.tenant)
            }
        },
    };
    // For no tenant in particular: an id that no tenant has, so what a new one could expect.
    let id = match &caller {
        AsAnyone::Tenant(caller) => caller.id,
        AsAnyone::Admin(_) => entry.map_or(TenantId(u32::MAX), |tenant| tenant.id),
    };
    let now = state.engine.capacity(id, prompt_tokens).await?;
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    let target = entry.and_then(|tenant| tenant.ttft_target);
    let pace = entry.and_then(|tenant| tenant.tpot_target);
    let max_queued = entry.and_then(|tenant| tenant.max_queued);
    let would_wait = now.rate_limited_for.or(now.refused_for);
    let whole = |count: usize| sees_all.then_some(count);
    let engine = EngineCapacity {
        share: now.share,
        running: whole(now.total_running),
        waiting: whole(now.total_waiting),
        max_running: whole(limits.scheduler.max_num_seqs),
        max_waiting: whole(limits.scheduler.max_queued),
        kv_blocks_free: whole(now.free_blocks),
        kv_blocks: whole(limits.scheduler.num_blocks),
    };
    Ok(Json(Capacity {
        object: CapacityObject::Word,
        tenant: entry.map(|tenant| tenant.name.to_string()),
        accepting: would_wait.is_none() && !state.engine.is_draining(),
        retry_after_seconds: would_wait.map(|wait| wait.as_secs_f64().ceil().max(1.0)),
        expected: Expected {
            prompt_tokens,
            ttft_seconds: seconds(now.ttft),
            tpot_seconds: seconds(now.tpot),
        },
        targets: Targets { ttft_seconds: seconds(target), tpot_seconds: seconds(pace) },
        requests: Requests {
            running: now.running,
            waiting: now.waiting,
            max_running: entry.and_then(|tenant| tenant.max_running),
            max_waiting: max_queued,
        },
        engine,
    }))
}
