//! `/v1/capacity`: what the caller may expect now.

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    response::IntoResponse,
};
use sconce_types::TenantId;
use serde::Deserialize;
use serde_json::json;

use crate::{caller::AsAnyone, error::ApiError, state::AppState};

/// The prompt's length where the query does not give one.
const DEFAULT_PROMPT_TOKENS: usize = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CapacityQuery {
    prompt_tokens: Option<usize>,
    /// An administrator may ask for a tenant's; a tenant for its own only.
    tenant: Option<String>,
}

pub(crate) async fn capacity(
    State(state): State<AppState>,
    caller: AsAnyone,
    query: Result<Query<CapacityQuery>, QueryRejection>,
) -> Result<impl IntoResponse, ApiError> {
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
    let seconds = |time: Option<std::time::Duration>| time.map(|time| time.as_secs_f64());
    let target = entry.and_then(|tenant| tenant.ttft_target);
    let pace = entry.and_then(|tenant| tenant.tpot_target);
    let max_queued = entry.and_then(|tenant| tenant.max_queued);
    let would_wait = now.rate_limited_for.or(now.refused_for);
    let mut engine = json!({ "share": now.share });
    if sees_all {
        engine = json!({
            "share": now.share,
            "running": now.total_running,
            "waiting": now.total_waiting,
            "max_running": limits.scheduler.max_num_seqs,
            "max_waiting": limits.scheduler.max_queued,
            "kv_blocks_free": now.free_blocks,
            "kv_blocks": limits.scheduler.num_blocks,
        });
    }
    Ok(Json(json!({
        "object": "capacity",
        "tenant": entry.map(|tenant| &tenant.name),
        "accepting": would_wait.is_none() && !state.engine.is_draining(),
        "retry_after_seconds": would_wait.map(|wait| wait.as_secs_f64().ceil().max(1.0)),
        "expected": {
            "prompt_tokens": prompt_tokens,
            "ttft_seconds": seconds(now.ttft),
            "tpot_seconds": seconds(now.tpot),
        },
        "targets": {
            "ttft_seconds": seconds(target),
            "tpot_seconds": seconds(pace),
        },
        "requests": {
            "running": now.running,
            "waiting": now.waiting,
            "max_running": entry.and_then(|tenant| tenant.max_running),
            "max_waiting": max_queued,
        },
        "engine": engine,
    })))
}
