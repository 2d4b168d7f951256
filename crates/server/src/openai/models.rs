//! `/v1/models`.

use axum::{
    Json,
    extract::{Path, State},
    response::IntoResponse,
};
use serde_json::{Value, json};

use crate::{caller::TenantAuth, error::ApiError, state::AppState};

pub(crate) async fn list(State(state): State<AppState>, caller: TenantAuth) -> impl IntoResponse {
    let names = super::models_of(&state, &caller);
    let models: Vec<_> = names.iter().map(|name| describe(&state, name)).collect();
    Json(json!({ "object": "list", "data": models }))
}

pub(crate) async fn retrieve(
    State(state): State<AppState>,
    caller: TenantAuth,
    Path(id): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let id = id.trim_end_matches('/');
    super::check_model(&state, &caller, Some(id))?;
    Ok(Json(describe(&state, id)))
}

fn describe(state: &AppState, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": state.started,
        "owned_by": "sconce",
        "root": state.model_name(),
        "parent": null,
        "max_model_len": state.max_model_len(),
    })
}
