//! `/v1/files`.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    sync::Arc,
};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{
        FromRequestParts, Multipart, Path, Query, State,
        multipart::{Field, MultipartError, MultipartRejection},
    },
    http::{header::CONTENT_TYPE, request::Parts},
    response::{IntoResponse as _, Response},
};
use futures::stream;
use sconce_batches::{Page, StoreError, StoredFile, Upload};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::ToSchema;

use super::models::List;
use crate::{
    Batches,
    caller::{OfOwnSite, TenantAuth},
    error::ApiError,
    state::{AppState, unix_seconds},
    word::word,
};

word!(FileObject = "file");

/// Bytes of a file that are written or read at a time.
const PIECE: usize = 256 << 10;
/// Bytes of a form's other fields, and of a file's name.
const MAX_FIELD: usize = 1024;
/// Entries of a list, and how many there are if nothing is said.
const MAX_LIMIT: usize = 10_000;

/// Files and batches, where the server has a folder for them.
pub(super) fn batches(state: &AppState) -> Result<Arc<Batches>, ApiError> {
    state.config.batches.clone().ok_or_else(ApiError::no_batches)
}

/// The name that a tenant's files go by.
pub(super) fn owner(caller: &TenantAuth) -> String {
    caller.entry().map_or_else(|| "default".to_owned(), |entry| entry.tenant.name.to_string())
}

/// Asks the store, which waits for the disk.
pub(super) async fn on_disk<T: Send + 'static>(
    state: &AppState,
    caller: &TenantAuth,
    work: impl FnOnce(&Batches, &str) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    let (batches, owner) = (batches(state)?, owner(caller));
    let done = tokio::task::spawn_blocking(move || work(&batches, &owner)).await;
    Ok(done.map_err(|_| ApiError::bug())??)
}

/// What a list may be asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    pub(super) after: Option<String>,
    limit: Option<usize>,
    purpose: Option<String>,
    order: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for ListQuery {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let query = Query::try_from_uri(&parts.uri);
        query.map(|Query(query)| query).map_err(|error| {
            ApiError::invalid(None, format!("the query is wrong: {}", error.body_text()))
        })
    }
}

impl ListQuery {
    pub(super) fn limit(&self, default: usize) -> Result<usize, ApiError> {
        let limit = self.limit.unwrap_or(default);
        if (1..=MAX_LIMIT).contains(&limit) {
            return Ok(limit);
        }
        let message = format!("limit is {limit}, but must be from 1 to {MAX_LIMIT}");
        Err(ApiError::invalid(Some("limit"), message))
    }

    /// Lists begin with the newest.
    pub(super) fn check_order(&self) -> Result<(), ApiError> {
        match self.order.as_deref() {
            None | Some("desc") => Ok(()),
            Some(order) => {
                let message = format!("order is {order:?}, but must be \"desc\"");
                Err(ApiError::invalid(Some("order"), message))
            }
        }
    }
}

/// A part of a list.
#[derive(Serialize, ToSchema)]
pub(crate) struct Listed<T> {
    #[schema(inline)]
    object: List,
    data: Vec<T>,
    #[schema(required)]
    first_id: Option<String>,
    #[schema(required)]
    last_id: Option<String>,
    /// Whether older ones follow.
    has_more: bool,
}

impl<T> Listed<T> {
    pub(super) fn new(page: Page<T>, id: impl Fn(&T) -> &str) -> Self {
        let Page { data, has_more } = page;
        let [first_id, last_id] =
            [data.first(), data.last()].map(|entry| entry.map(|entry| id(entry).to_owned()));
        Self { object: List::Word, data, first_id, last_id, has_more }
    }
}

/// What is said of a file that was removed.
#[derive(Serialize, ToSchema)]
pub(crate) struct DeletedFile {
    id: String,
    #[schema(inline)]
    object: FileObject,
    deleted: bool,
}

/// The form that a file comes in.
#[derive(ToSchema)]
#[expect(dead_code, reason = "a form is read by hand")]
pub(crate) struct FileForm {
    /// `batch`.
    purpose: String,
    /// Lines of JSON.
    #[schema(format = Binary)]
    file: String,
}

/// List files
#[utoipa::path(
    get, path = "/v1/files", tag = "OpenAI", operation_id = "listFiles",
    params(
        ("purpose" = Option<String>, Query, description = "Only those for this: `batch` or `batch_output`"),
        ("after" = Option<String>, Query, description = "Those made before this one"),
        ("limit" = Option<usize>, Query, description = "So many at most; 10,000 if not given"),
    ),
    responses((status = 200, description = "The caller's files, the newest first", body = Listed<StoredFile>)),
)]
pub(crate) async fn list(
    State(state): State<AppState>,
    caller: TenantAuth,
    query: ListQuery,
) -> Result<Json<Listed<StoredFile>>, ApiError> {
    query.check_order()?;
    let limit = query.limit(MAX_LIMIT)?;
    let batches = batches(&state)?;
    let purpose = query.purpose.as_deref();
    let page = batches.store.files(&owner(&caller), purpose, (query.after.as_deref(), limit));
    Ok(Json(Listed::new(page, |file| &file.id)))
}

/// Describe a file
#[utoipa::path(
    get, path = "/v1/files/{id}", tag = "OpenAI", operation_id = "retrieveFile",
    params(("id" = String, Path, description = "The file's id")),
    responses((status = 200, description = "The file", body = StoredFile)),
)]
pub(crate) async fn retrieve(
    State(state): State<AppState>,
    caller: TenantAuth,
    Path(id): Path<String>,
) -> Result<Json<StoredFile>, ApiError> {
    Ok(Json(batches(&state)?.store.file(&owner(&caller), &id)?))
}

/// Remove a file
#[utoipa::path(
    delete, path = "/v1/files/{id}", tag = "OpenAI", operation_id = "deleteFile",
    params(("id" = String, Path, description = "The file's id")),
    responses((status = 200, description = "It is gone", body = DeletedFile)),
)]
pub(crate) async fn delete(
    State(state): State<AppState>,
    caller: TenantAuth,
    Path(id): Path<String>,
) -> Result<Json<DeletedFile>, ApiError> {
    let deleted = DeletedFile { id: id.clone(), object: FileObject::Word, deleted: true };
    on_disk(&state, &caller, move |batches, owner| batches.store.delete(owner, &id)).await?;
    Ok(Json(deleted))
}

/// Read a file
#[utoipa::path(
    get, path = "/v1/files/{id}/content", tag = "OpenAI", operation_id = "downloadFile",
    params(("id" = String, Path, description = "The file's id")),
    responses((status = 200, description = "What is in it", body = String, content_type = "application/jsonl")),
)]
pub(crate) async fn content(
    State(state): State<AppState>,
    caller: TenantAuth,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let open = move |batches: &Batches, owner: &str| {
        let path = batches.store.content(owner, &id)?;
        File::open(&path).map_err(|source| StoreError::Io { path, source })
    };
    let file = on_disk(&state, &caller, open).await?;
    let pieces = stream::try_unfold(file, |mut file| async move {
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; PIECE];
            let len = file.read(&mut piece)?;
            piece.truncate(len);
            std::io::Result::Ok((piece, file))
        });
        let (piece, file) = read.await.map_err(std::io::Error::other)??;
        std::io::Result::Ok((!piece.is_empty()).then(|| (Bytes::from(piece), file)))
    });
    let headers = [(CONTENT_TYPE, "application/jsonl")];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// Upload a file
#[utoipa::path(
    post, path = "/v1/files", tag = "OpenAI", operation_id = "createFile",
    request_body(content = FileForm, content_type = "multipart/form-data"),
    responses((status = 200, description = "The file, which is kept until it is removed", body = StoredFile)),
)]
pub(crate) async fn create(
    State(state): State<AppState>,
    OfOwnSite(caller): OfOwnSite,
    form: Result<Multipart, MultipartRejection>,
) -> Result<Json<StoredFile>, ApiError> {
    batches(&state)?;
    let mut form = form.map_err(|error| {
        let message = format!("a file comes as multipart/form-data: {}", error.body_text());
        ApiError::invalid(None, message)
    })?;
    let pause = state.config.bodies.pause_timeout;
    let slow = || ApiError::slow("the request's body");
    let (mut purpose, mut file) = (None, None);
    while let Some(mut field) =
        timeout(pause, form.next_field()).await.map_err(|_| slow())?.map_err(damaged)?
    {
        match field.name() {
            Some("purpose") => purpose = Some(text(&mut field, "purpose").await?),
            Some("file") => {
                let name: String =
                    field.file_name().unwrap_or("upload").chars().take(MAX_FIELD).collect();
                let mut upload =
                    on_disk(&state, &caller, |batches, owner| batches.store.upload(owner)).await?;
                let mut piece = Vec::new();
                loop {
                    let chunk = timeout(pause, field.chunk()).await.map_err(|_| slow())?;
                    let chunk = chunk.map_err(damaged)?;
                    piece.extend_from_slice(chunk.as_deref().unwrap_or_default());
                    if piece.len() >= PIECE || chunk.is_none() {
                        upload = write(&state, &caller, upload, std::mem::take(&mut piece)).await?;
                    }
                    if chunk.is_none() {
                        break;
                    }
                }
                file = Some((name, upload));
            }
            Some(name) => return Err(ApiError::unsupported(name)),
            None => return Err(ApiError::invalid(None, "a field of the form has no name")),
        }
    }
    match purpose.as_deref() {
        Some("batch") => {}
        Some(other) => {
            let message = format!("purpose is {other:?}, but must be \"batch\"");
            return Err(ApiError::invalid(Some("purpose"), message));
        }
        None => return Err(ApiError::invalid(Some("purpose"), "purpose is missing")),
    }
    let (name, upload) =
        file.ok_or_else(|| ApiError::invalid(Some("file"), "file is missing from the form"))?;
    let id = state.next_id("file-");
    let keep = move |batches: &Batches, owner: &str| {
        batches.store.keep(owner, upload, id, (name, "batch"), unix_seconds())
    };
    Ok(Json(on_disk(&state, &caller, keep).await?))
}

async fn write(
    state: &AppState,
    caller: &TenantAuth,
    mut upload: Upload,
    piece: Vec<u8>,
) -> Result<Upload, ApiError> {
    let most = batches(state)?.store.limits().max_file_bytes;
    let (upload, fits) = on_disk(state, caller, move |batches, owner| {
        let fits = piece.len() as u64 <= batches.store.room(owner, &upload);
        if fits {
            let written = upload.write_all(&piece);
            written.map_err(|source| StoreError::Io { path: "an upload".into(), source })?;
        }
        Ok((upload, fits))
    })
    .await?;
    if fits { Ok(upload) } else { Err(ApiError::file_too_large(most)) }
}

/// A short field's text.
async fn text(field: &mut Field<'_>, name: &str) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(damaged)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_FIELD {
            let message = format!("{name} has more than {MAX_FIELD} bytes");
            return Err(ApiError::invalid(Some(name), message));
        }
    }
    String::from_utf8(bytes)
        .map_err(|_| ApiError::invalid(Some(name), format!("{name} is not UTF-8")))
}

fn damaged(error: MultipartError) -> ApiError {
    ApiError::invalid(None, format!("the form could not be read: {}", error.body_text()))
}
