//! OpenAI's endpoints.

pub(crate) mod chat;
mod choice;
pub(crate) mod completions;
mod decoder;
mod echo;
mod legacy_logprobs;
pub(crate) mod models;
mod params;
mod stream;
mod usage;

use crate::{caller::TenantAuth, error::ApiError, state::AppState};

/// Choices that one request may ask for in all.
const MAX_CHOICES: usize = 128;

/// The served names that a caller may use.
pub(crate) fn models_of(state: &AppState, caller: &TenantAuth) -> Vec<String> {
    let served = state.config.served_model_names.iter();
    served.filter(|name| caller.may_use(name)).cloned().collect()
}

/// Refuses a model that is not served, or not to this caller; none means the one that is.
pub(crate) fn check_model(
    state: &AppState,
    caller: &TenantAuth,
    model: Option<&str>,
) -> Result<(), ApiError> {
    let model = model.unwrap_or_else(|| state.model_name());
    let is_served = state.config.served_model_names.iter().any(|name| name == model);
    if (is_served || model.is_empty()) && caller.may_use(model) {
        return Ok(());
    }
    Err(ApiError::model_not_found(model, &models_of(state, caller)))
}
