//! RoPE's fields, as transformers' `modeling_rope_utils` reads them.

use serde_json::{Map, Value};

use super::{
    Fields, MAX_SIZE,
    fields::{clip, positive, refuse},
};
use crate::{ModelError, RopeParams, RopeScaling};

/// Reads the rotary embeddings of heads of `head_dim`, in a context of
/// `max_position_embeddings`.
pub(crate) type ReadRope = fn(&Fields<'_>, usize, usize) -> Result<RopeParams, ModelError>;

/// The base of RoPE's frequencies, and their scaling, for heads of `head_dim`.
///
/// The fields stand in `rope_parameters`, or, as before transformers 5, in `rope_scaling`,
/// which is taken where both are there; `rope_theta` may stand beside them.
pub(super) fn read(
    config: &Fields<'_>,
    head_dim: usize,
    max_position_embeddings: usize,
) -> Result<RopeParams, ModelError> {
    let older = config.object("rope_scaling", "rope_scaling.")?;
    let newer = config.object("rope_parameters", "rope_parameters.")?;
    let nothing = Map::new();
    let rope = older.or(newer).unwrap_or(Fields::new("rope_parameters.", &nothing));
    let theta = theta(config, &rope, ("rope_theta", 10_000.0))?;
    parameters(config, &rope, theta, (head_dim, max_position_embeddings))
}

/// Of layers that see all of the context, in a model where each kind of layers has its own:
/// `rope_parameters.full_attention`, or, as before transformers 5, `rope_theta` and
/// `rope_scaling`, whose fields count where both have them.
pub(crate) fn of_global_layers(
    config: &Fields<'_>,
    head_dim: usize,
    max_position_embeddings: usize,
) -> Result<RopeParams, ModelError> {
    let mut fields = of_layer_type(config, "full_attention")?;
    let mut prefix = "rope_parameters.full_attention.";
    if let Some(older) = config.object("rope_scaling", "rope_scaling.")? {
        fields.extend(older.entries().clone());
        prefix = "rope_scaling.";
    }
    let rope = Fields::new(prefix, &fields);
    let theta = theta(config, &rope, ("rope_theta", 1_000_000.0))?;
    parameters(&rope, &rope, theta, (head_dim, max_position_embeddings))
}

/// Of layers that see a window: `rope_parameters.sliding_attention`, or
/// `rope_local_base_freq`, which knows no scaling.
pub(crate) fn of_local_layers(
    config: &Fields<'_>,
    head_dim: usize,
    max_position_embeddings: usize,
) -> Result<RopeParams, ModelError> {
    let fields = of_layer_type(config, "sliding_attention")?;
    let rope = Fields::new("rope_parameters.sliding_attention.", &fields);
    let theta = theta(config, &rope, ("rope_local_base_freq", 10_000.0))?;
    parameters(&rope, &rope, theta, (head_dim, max_position_embeddings))
}

/// What `rope_parameters` has for one kind of layers.
fn of_layer_type(config: &Fields<'_>, kind: &str) -> Result<Map<String, Value>, ModelError> {
    let default = || Map::from_iter([("rope_type".to_owned(), "default".into())]);
    let Some(kinds) = config.object("rope_parameters", "rope_parameters.")? else {
        return Ok(default());
    };
    for (name, value) in kinds.entries() {
        if !value.is_object() && !value.is_null() {
            let accepted = "an object, as layers of each kind have their own".to_owned();
            return Err(refuse(kinds.path(name), &clip(&value.to_string()), accepted));
        }
    }
    Ok(kinds.given(kind).and_then(Value::as_object).cloned().unwrap_or_else(default))
}

/// The base of the frequencies: beside the scaling's fields, or else `field` of config.json.
fn theta(
    config: &Fields<'_>,
    rope: &Fields<'_>,
    (field, default): (&str, f64),
) -> Result<f64, ModelError> {
    match rope.get("rope_theta") {
        Some(_) => positive(rope.path("rope_theta"), rope.number("rope_theta", 0.0)?),
        None => positive(field, config.number(field, default)?),
    }
}

/// All parameters; `config` is where some fields may stand that `rope` does not have.
fn parameters(
    config: &Fields<'_>,
    rope: &Fields<'_>,
    theta: f64,
    (head_dim, max_position_embeddings): (usize, usize),
) -> Result<RopeParams, ModelError> {
    let partial = match rope.nullable_number("partial_rotary_factor")? {
        Some(partial) => partial,
        None => config.nullable_number("partial_rotary_factor")?.unwrap_or(1.0),
    };
    if partial != 1.0 {
        // No family rotates parts of heads: transformers ignores the field or fails.
        let accepted = "1: whole heads are rotated".to_owned();
        return Err(refuse("partial_rotary_factor", &partial, accepted));
    }
    let kind = match rope.get("rope_type") {
        Some(_) => rope.string("rope_type", "")?,
        None => rope.string("type", "default")?,
    };
    let reader = Reader { config, rope, theta, max_position_embeddings };
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: reader.required("factor")? },
        "llama3" => reader.llama3()?,
        "yarn" => reader.yarn()?,
        other => {
            let accepted = "one of default, linear, llama3, yarn".to_owned();
            return Err(refuse(rope.path("rope_type"), &clip(other), accepted));
        }
    };
    Ok(RopeParams { head_dim, theta, scaling })
}

struct Reader<'a> {
    config: &'a Fields<'a>,
    rope: &'a Fields<'a>,
    theta: f64,
    max_position_embeddings: usize,
}

impl Reader<'_> {
    /// A number above 0 that must be there.
    fn required(&self, field: &str) -> Result<f64, ModelError> {
        let path = self.rope.path(field);
        if self.rope.get(field).is_none() {
            return Err(refuse(path, &"absent", "a number above 0".to_owned()));
        }
        positive(path, self.rope.number(field, 0.0)?)
    }

    /// A number above 0; absent, null and 0 are the default.
    fn or_default(&self, field: &str, default: f64) -> Result<f64, ModelError> {
        let given = self.rope.nullable_number(field)?.filter(|number| *number != 0.0);
        positive(self.rope.path(field), given.unwrap_or(default))
    }

    /// The context that the model was first trained with: beside the scaling, where Phi-3
    /// has it, before that within.
    fn original(&self) -> Result<usize, ModelError> {
        let field = "original_max_position_embeddings";
        match self.config.get(field) {
            Some(_) => self.config.size(field, 0, MAX_SIZE),
            None => self.rope.size(field, self.max_position_embeddings, MAX_SIZE),
        }
    }

    fn llama3(&self) -> Result<RopeScaling, ModelError> {
        let low = self.required("low_freq_factor")?;
        let high = self.required("high_freq_factor")?;
        if high <= low {
            let accepted = format!("above low_freq_factor, {low}");
            return Err(refuse(self.rope.path("high_freq_factor"), &high, accepted));
        }
        Ok(RopeScaling::Llama3 {
            factor: self.required("factor")?,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: self.original()?,
        })
    }

    fn yarn(&self) -> Result<RopeScaling, ModelError> {
        let original = self.original()?;
        // A null says that the contexts' ratio is meant.
        let factor = match self.rope.get("factor") {
            Some(factor) if factor.is_null() => {
                self.max_position_embeddings as f64 / original as f64
            }
            _ => self.required("factor")?,
        };
        let [mscale, mscale_all_dim] =
            ["mscale", "mscale_all_dim"].map(|field| self.rope.nullable_number(field));
        let attention_factor = match self.rope.nullable_number("attention_factor")? {
            Some(given) => given,
            None => {
                let scale = |mscale: f64| {
                    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
                };
                match (mscale?, mscale_all_dim?) {
                    (Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => {
                        scale(mscale) / scale(all)
                    }
                    _ => scale(1.0),
                }
            }
        };
        if self.theta <= 1.0 {
            let accepted = "above 1, as the scaling is yarn".to_owned();
            return Err(refuse("rope_theta", &self.theta, accepted));
        }
        // transformers takes a null for false here.
        let truncate = match self.rope.get("truncate") {
            Some(truncate) if truncate.is_null() => false,
            _ => self.rope.flag("truncate", true)?,
        };
        Ok(RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: original,
            beta_fast: self.or_default("beta_fast", 32.0)?,
            beta_slow: self.or_default("beta_slow", 1.0)?,
            truncate,
            attention_factor: positive(self.rope.path("attention_factor"), attention_factor)?,
        })
    }
}
