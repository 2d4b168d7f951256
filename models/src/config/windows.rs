//! Which layers of a model see all of the context, and which a window.

use super::{
    Fields, MAX_SIZE,
    fields::{clip, refuse},
};
use crate::ModelError;

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
    let window = match (config.flag("use_sliding_window", false)?, config.get("sliding_window")) {
        (false, _) => None,
        (true, None) => Some(4096),
        (true, Some(_)) => config.nullable_size("sliding_window", MAX_SIZE)?,
    };
    let Some(_) = config.given("layer_types") else {
        // Of no window the first layer that has it is of no account.
        let first =
            if window.is_some() { config.count("max_window_layers", 28, MAX_SIZE)? } else { 0 };
        return Ok((0..num_layers).map(|index| window.filter(|_| index >= first)).collect());
    };
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
