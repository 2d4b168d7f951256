//! Which layers of a model see all of the context, and which a window.

use super::{
    Fields, MAX_SIZE,
    fields::{clip, refuse},
};
use crate::ModelError;

/// Qwen's `sliding_window`, where `use_sliding_window` says that there is one.
///
/// # Errors
/// A field that cannot be served, by name.
pub(crate) fn optional_window(config: &Fields<'_>) -> Result<Option<usize>, ModelError> {
    match (config.flag("use_sliding_window", false)?, config.get("sliding_window")) {
        (false, _) => Ok(None),
        (true, None) => Ok(Some(4096)),
        (true, Some(_)) => config.nullable_size("sliding_window", MAX_SIZE),
    }
}

/// For each layer the positions that its queries see, if not all: Qwen's
/// `use_sliding_window`, `sliding_window` and `max_window_layers`, or `layer_types` in place
/// of the last.
///
/// # Errors
/// A field that cannot be served, by name.
pub(crate) fn windows(
    config: &Fields<'_>,
    num_layers: usize,
) -> Result<Vec<Option<usize>>, ModelError> {
    let window = optional_window(config)?;
    if config.given("layer_types").is_some() {
        return of_layer_types(config, num_layers, window);
    }
    // Of no window the first layer that has it is of no account.
    let first =
        if window.is_some() { config.count("max_window_layers", 28, MAX_SIZE)? } else { 0 };
    Ok((0..num_layers).map(|index| window.filter(|_| index >= first)).collect())
}

/// The same where layers with a window alternate with such as see all of the context:
/// `layer_types`, or every `sliding_window_pattern`-th layer sees all of it.
///
/// # Errors
/// A field that cannot be served, by name.
pub(crate) fn alternating_windows(
    config: &Fields<'_>,
    num_layers: usize,
) -> Result<Vec<Option<usize>>, ModelError> {
    let window = config.size("sliding_window", 4096, MAX_SIZE)?;
    if config.given("layer_types").is_some() {
        return of_layer_types(config, num_layers, Some(window));
    }
    let pattern = config.size("sliding_window_pattern", 6, MAX_SIZE)?;
    let of = |index: usize| Some(window).filter(|_| !(index + 1).is_multiple_of(pattern));
    Ok((0..num_layers).map(of).collect())
}

/// `layer_types`, of which some have the window.
fn of_layer_types(
    config: &Fields<'_>,
    num_layers: usize,
    window: Option<usize>,
) -> Result<Vec<Option<usize>>, ModelError> {
    let kinds = config.strings("layer_types")?;
    if kinds.len() != num_layers {
        let shown = format!("a list of {}", kinds.len());
        let accepted = format!("as long as num_hidden_layers, {num_layers}");
        return Err(refuse("layer_types", &shown, accepted));
    }
    let of = |kind: &&str| match (*kind, window) {
        ("full_attention", _) => Ok(None),
        ("sliding_attention", Some(window)) => Ok(Some(window)),
        ("sliding_attention", None) => {
            let accepted = "full_attention, as use_sliding_window and sliding_window set no window";
            Err(refuse("layer_types", kind, accepted.to_owned()))
        }
        (other, _) => {
            let accepted = "full_attention or sliding_attention".to_owned();
            Err(refuse("layer_types", &clip(other), accepted))
        }
    };
    kinds.iter().map(of).collect()
}
