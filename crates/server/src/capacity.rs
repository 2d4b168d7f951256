//! `/v1/capacity`: what the caller may expect now.

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    response::IntoResponse,
};
use serde::Deserialize;
use serde_json::json;

use crate::{caller::AsTenant, error::ApiError, state::AppState};

/// Tokens of the prompt that is meant, if none is named.
const DEFAULT_PROMPT_TOKENS: usize = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CapacityQuery {
    prompt_tokens: Option<usize>,
}

pub(crate) async fn capacity(
    State(state): State<AppState>,
    caller: AsTenant,
    query: Result<Query<CapacityQuery>, QueryRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let Query(query) =
        query.map_err(|error| ApiError::invalid(Some("prompt_tokens"), error.body_text()))?;
    let limits = *state.engine.limits();
    let prompt_tokens = query.prompt_tokens.unwrap_or(DEFAULT_PROMPT_TOKENS);
    if prompt_tokens == 0 || prompt_tokens >= limits.max_model_len {
        let most = limits.max_model_len - 1;
        let message = format!("prompt_tokens is {prompt_tokens}, but must be from 1 to {most}");
        return Err(ApiError::invalid(Some("prompt_tokens"), message));
    }
    let now = state.engine.capacity(caller.id, prompt_tokens).await?;
    let entry = caller.entry().map(|entry| &entry.tenant);
    let seconds = |time: Option<std::time::Duration>| time.map(|time| time.as_secs_f64());
    let target = entry.and_then(|tenant| tenant.ttft_target);
    let pace = entry.and_then(|tenant| tenant.tpot_target);
    let max_queued = entry.and_then(|tenant| tenant.max_queued);
    let would_wait = now.rate_limited_for.or(now.refused_for);
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
        "engine": {
            "share": now.share,
            "running": now.total_running,
            "waiting": now.total_waiting,
            "max_running": limits.max_num_seqs,
            "max_waiting": limits.max_queued,
            "kv_blocks_free": now.free_blocks,
            "kv_blocks": limits.num_blocks,
        },
    })))
}
