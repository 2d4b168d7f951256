//! OpenAI's endpoints.

pub(crate) mod chat;
mod choice;
pub(crate) mod completions;
pub(crate) mod models;
mod params;
mod stream;
mod usage;

use crate::{error::ApiError, state::AppState};

/// Choices that one request may ask for in all.
const MAX_CHOICES: usize = 128;
/// Text longer than this is worked on off the async threads.
const OFFLOAD_BYTES: usize = 4096;

/// Refuses a model that is not served; none means the one that is.
pub(crate) fn check_model(state: &AppState, model: Option<&str>) -> Result<(), ApiError> {
    let served = &state.config.served_model_names;
    match model {
        Some(model) if !served.iter().any(|name| name == model) => {
            Err(ApiError::model_not_found(model, served))
        }
        _ => Ok(()),
    }
}

/// Runs what takes time in proportion to `bytes` of text, elsewhere if that is long.
pub(crate) async fn offload<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    if bytes <= OFFLOAD_BYTES {
        return Ok(work());
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ApiError::internal("a bug in the server; its log says more"))
}
