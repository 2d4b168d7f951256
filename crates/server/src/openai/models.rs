//! `/v1/models`.

use axum::{
    Json,
    extract::{Path, State},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{caller::TenantAuth, error::ApiError, state::AppState, word::word};

word!(List = "list");
word!(ModelObject = "model");
word!(Owner = "sconce");

/// What the caller may ask.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelList {
    #[schema(inline)]
    object: List,
    data: Vec<Model>,
}

/// A name under which the model is served.
#[derive(Serialize, ToSchema)]
pub(crate) struct Model {
    id: String,
    #[schema(inline)]
    object: ModelObject,
    /// When the server started, in seconds since 1970.
    created: u64,
    #[schema(inline)]
    owned_by: Owner,
    /// The model's own name.
    root: String,
    /// Always null.
    #[schema(required)]
    parent: Option<String>,
    /// Tokens of context, of a prompt and its answer together.
    max_model_len: usize,
}

/// List the models
#[utoipa::path(
    get, path = "/v1/models", tag = "OpenAI", operation_id = "listModels",
    responses((status = 200, description = "The models that the caller may use", body = ModelList)),
)]
pub(crate) async fn list(State(state): State<AppState>, caller: TenantAuth) -> Json<ModelList> {
    let names = super::models_of(&state, &caller);
    let data = names.iter().map(|name| Model::new(&state, name)).collect();
    Json(ModelList { object: List::Word, data })
}

/// Describe a model
#[utoipa::path(
    get, path = "/v1/models/{id}", tag = "OpenAI", operation_id = "retrieveModel",
    params(("id" = String, Path, description = "A served name, which may have slashes")),
    responses((status = 200, description = "The model", body = Model)),
)]
pub(crate) async fn retrieve(
    State(state): State<AppState>,
    caller: TenantAuth,
    Path(id): Path<String>,
) -> Result<Json<Model>, ApiError> {
    let id = id.trim_end_matches('/');
    super::check_model(&state, &caller, Some(id))?;
    Ok(Json(Model::new(&state, id)))
}

impl Model {
    fn new(state: &AppState, name: &str) -> Self {
        Self {
            id: name.to_owned(),
            object: ModelObject::Word,
            created: state.started,
            owned_by: Owner::Word,
            root: state.model_name().to_owned(),
            parent: None,
            max_model_len: state.max_model_len(),
        }
    }
}
