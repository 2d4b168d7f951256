//! `/v1/responses`.

mod events;
mod items;
mod request;
mod response;
mod store;
mod wire;

use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};
use serde_json::Value;

use self::{
    events::ResponseChunks,
    request::{Prepared, prepare},
    response::Answer,
    wire::{DeletedResponse, ResponseBody, ResponseObject},
};
#[cfg(test)]
pub(crate) use self::{
    items::{ItemBody, TextBody},
    request::OWN_FIELDS,
};
pub(crate) use self::{request::ResponsesBody, store::ResponseStore, wire::ResponseEvent};
use crate::{
    caller::TenantAuth,
    error::ApiError,
    generation::{choice::Choice, stream, structure, usage::Counts},
    json::JsonBody,
    state::{AppState, unix_seconds},
};

/// Respond to an input
///
/// Whole, or as server-sent events with `stream: true`, each named by its `type`.
#[utoipa::path(
    post, path = "/v1/responses", tag = "OpenAI", operation_id = "createResponse",
    request_body = ResponsesBody,
    responses((status = 200, description = "The response", content(
        (ResponseBody = "application/json"),
        (String = "text/event-stream", item_schema = ResponseEvent),
    ))),
)]
pub(crate) async fn create(
    State(state): State<AppState>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let Prepared { settings, start, shape, history } = body.work(&state, prepare).await?;
    let mut choice = Choice::submit(&state.generator, &settings, &start, 0, false)
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

/// Read a stored response
///
/// The latest ones of each tenant are kept in memory.
#[utoipa::path(
    get, path = "/v1/responses/{id}", tag = "OpenAI", operation_id = "getResponse",
    params(("id" = String, Path, description = "The response's id")),
    responses((status = 200, description = "The response", body = ResponseBody)),
)]
pub(crate) async fn retrieve(
    State(state): State<AppState>,
    caller: TenantAuth,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let id = id.trim_end_matches('/');
    let response = state.responses.response(caller.id, id);
    response.map(Json).ok_or_else(|| ApiError::response_not_found("response_id", id))
}

/// Delete a stored response
#[utoipa::path(
    delete, path = "/v1/responses/{id}", tag = "OpenAI", operation_id = "deleteResponse",
    params(("id" = String, Path, description = "The response's id")),
    responses((status = 200, description = "It is gone", body = DeletedResponse)),
)]
pub(crate) async fn delete(
    State(state): State<AppState>,
    caller: TenantAuth,
    Path(id): Path<String>,
) -> Result<Json<DeletedResponse>, ApiError> {
    let id = id.trim_end_matches('/');
    if state.responses.delete(caller.id, id) {
        let (id, object) = (id.to_owned(), ResponseObject::Word);
        return Ok(Json(DeletedResponse { id, object, deleted: true }));
    }
    Err(ApiError::response_not_found("response_id", id))
}
