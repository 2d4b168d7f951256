//! `/v1/batches`.

use axum::{
    Json,
    extract::{Path, State},
};
use sconce_batches::Batch;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::files::{ListQuery, Listed, batches, on_disk, owner};
use crate::{
    Batches,
    caller::TenantAuth,
    error::ApiError,
    json::{Body, JsonBody},
    state::{AppState, unix_seconds},
};

/// Where requests of a batch may go.
const ENDPOINTS: [&str; 4] =
    ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"];
/// The one time that a batch may have, in hours.
const WINDOW: (&str, u64) = ("24h", 24);
/// Entries of a list if nothing is said.
const LIMIT: usize = 20;

/// A request to run the requests of a file.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BatchBody {
    /// An uploaded file: a line for each request, `{"custom_id", "method": "POST", "url", "body"}`.
    input_file_id: String,
    /// Where all its requests go: `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings` or
    /// `/v1/responses`.
    endpoint: String,
    /// `24h`.
    completion_window: String,
    /// The client's own notes: at most 16 pairs of strings.
    metadata: Option<Map<String, Value>>,
}

impl Body for BatchBody {
    const UNSUPPORTED: &'static [(&'static str, Option<&'static str>)] =
        &[("output_expires_after", None)];
}

impl BatchBody {
    fn check(&self) -> Result<(), ApiError> {
        if !ENDPOINTS.contains(&&*self.endpoint) {
            let message = format!(
                "endpoint is {:?}, but must be one of {}",
                self.endpoint,
                ENDPOINTS.join(", ")
            );
            return Err(ApiError::invalid(Some("endpoint"), message));
        }
        if self.completion_window != WINDOW.0 {
            let message = format!(
                "completion_window is {:?}, but must be {:?}",
                self.completion_window, WINDOW.0
            );
            return Err(ApiError::invalid(Some("completion_window"), message));
        }
        super::check_metadata(self.metadata.as_ref())
    }
}

/// Run a batch
#[utoipa::path(
    post, path = "/v1/batches", tag = "OpenAI", operation_id = "createBatch",
    request_body = BatchBody,
    responses((status = 200, description = "The batch, which is run with what other requests \
        leave idle", body = Batch)),
)]
pub(crate) async fn create(
    State(state): State<AppState>,
    body: JsonBody,
) -> Result<Json<Batch>, ApiError> {
    let (caller, body) = body
        .work(&state, |_, caller, body: BatchBody| {
            body.check()?;
            Ok((caller, body))
        })
        .await?;
    let id = state.next_id("batch_");
    let seconds = WINDOW.1 * 3600;
    let BatchBody { input_file_id, endpoint, metadata, .. } = body;
    let mut batch = Batch::new(id, input_file_id, endpoint, unix_seconds(), seconds);
    batch.metadata = metadata;
    let add = move |batches: &Batches, owner: &str| {
        batches.store.add(owner, &batch)?;
        batches.wake();
        Ok(batch)
    };
    let added = on_disk(&state, &caller, add).await;
    added.map(Json).map_err(|error| error.renamed("file_id", "input_file_id"))
}

/// List batches
#[utoipa::path(
    get, path = "/v1/batches", tag = "OpenAI", operation_id = "listBatches",
    params(
        ("after" = Option<String>, Query, description = "Those made before this one"),
        ("limit" = Option<usize>, Query, description = "So many at most; 20 if not given"),
    ),
    responses((status = 200, description = "The caller's batches, the newest first", body = Listed<Batch>)),
)]
pub(crate) async fn list(
    State(state): State<AppState>,
    caller: TenantAuth,
    query: ListQuery,
) -> Result<Json<Listed<Batch>>, ApiError> {
    query.check_order()?;
    let limit = query.limit(LIMIT)?;
    let page = batches(&state)?.store.batches(&owner(&caller), (query.after.as_deref(), limit));
    Ok(Json(Listed::new(page, |batch| &batch.id)))
}

/// Show a batch
#[utoipa::path(
    get, path = "/v1/batches/{id}", tag = "OpenAI", operation_id = "retrieveBatch",
    params(("id" = String, Path, description = "The batch's id")),
    responses((status = 200, description = "The batch as it is now", body = Batch)),
)]
pub(crate) async fn retrieve(
    State(state): State<AppState>,
    caller: TenantAuth,
    Path(id): Path<String>,
) -> Result<Json<Batch>, ApiError> {
    Ok(Json(batches(&state)?.store.batch(&owner(&caller), &id)?))
}

/// Give a batch up
#[utoipa::path(
    post, path = "/v1/batches/{id}/cancel", tag = "OpenAI", operation_id = "cancelBatch",
    params(("id" = String, Path, description = "The batch's id")),
    responses((status = 200, description = "The batch; what runs is finished", body = Batch)),
)]
pub(crate) async fn cancel(
    State(state): State<AppState>,
    caller: TenantAuth,
    Path(id): Path<String>,
) -> Result<Json<Batch>, ApiError> {
    let cancel = move |batches: &Batches, owner: &str| {
        let changed = batches.store.change(owner, &id, |batch| batch.cancel(unix_seconds()))?;
        batches.wake();
        Ok(changed)
    };
    let (batch, is_new) = on_disk(&state, &caller, cancel).await?;
    if is_new {
        return Ok(Json(batch));
    }
    let message = format!("the batch is {}, and cannot be cancelled", batch.status.name());
    Err(ApiError::conflict(message))
}
