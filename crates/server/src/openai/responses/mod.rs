//! `/v1/responses`.

mod events;
mod items;
mod request;
mod response;
mod store;

use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};

pub(crate) use self::store::ResponseStore;
use self::{
    events::ResponseChunks,
    request::{Prepared, prepare},
    response::Answer,
};
use crate::{
    caller::TenantAuth,
    error::ApiError,
    generation::{choice::Choice, stream, structure, usage::Counts},
    json::JsonBody,
    state::{AppState, unix_seconds},
};

/// `POST /v1/responses`.
pub(crate) async fn create(
    State(state): State<AppState>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let Prepared { settings, start, shape, history } = body.work(&state, prepare).await?;
    let mut choice = Choice::submit(&state, &settings, &start, 0, false)
        .map_err(|error| error.renamed("max_tokens", "max_output_tokens").within("input"))?;
    structure::make_ready(&state, &settings, std::slice::from_mut(&mut choice)).await?;
    let counts = Counts::new(start.prompt.len(), 1, 1, false);
    let tenants = settings.caller.num_tenants();
    let keep = if shape.is_stored {
        state.responses.keeper(settings.caller.id, tenants, history)
    } else {
        None
    };
    let answer = Answer::new(&state, shape, counts, unix_seconds(), keep);
    if settings.stream.is_none() {
        return Ok(Json(answer.of(choice).await?).into_response());
    }
    stream::respond(vec![choice], ResponseChunks::new(answer)).await
}

/// `GET /v1/responses/{id}`.
pub(crate) async fn retrieve(
    State(state): State<AppState>,
    caller: TenantAuth,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let id = id.trim_end_matches('/');
    let response = state.responses.response(caller.id, id);
    response.map(Json).ok_or_else(|| ApiError::response_not_found("response_id", id))
}

/// `DELETE /v1/responses/{id}`.
pub(crate) async fn delete(
    State(state): State<AppState>,
    caller: TenantAuth,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let id = id.trim_end_matches('/');
    if state.responses.delete(caller.id, id) {
        return Ok(Json(json!({ "id": id, "object": "response", "deleted": true })));
    }
    Err(ApiError::response_not_found("response_id", id))
}
