//! Which layers of a model are experts, and how rows choose them.

use sconce_kernels::Routing;

use super::{Decoder, Fields, MAX_LAYERS, MAX_SIZE, refuse};
use crate::ModelError;

/// Experts at most.
const MAX_EXPERTS: usize = 1 << 10;

/// The layers of experts, by the names of Qwen's config.json.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    /// `num_experts`, `num_experts_per_tok` and `norm_topk_prob`.
    pub routing: Routing,
    /// Elements between an expert's projections.
    pub moe_intermediate_size: usize,
    /// Of so many layers the last has experts.
    pub decoder_sparse_step: usize,
    /// Layers that have none all the same.
    pub mlp_only_layers: Vec<usize>,
}

impl Mixture {
    /// Whether a layer has experts.
    #[must_use]
    pub fn is_sparse(&self, layer: usize) -> bool {
        (layer + 1).is_multiple_of(self.decoder_sparse_step)
            && !self.mlp_only_layers.contains(&layer)
    }

    /// Reads and checks the fields; `None` where no layer has experts. transformers 5 writes
    /// `num_local_experts`, and takes it where both are there.
    ///
    /// # Errors
    /// A field that cannot be served, by name.
    pub(crate) fn read(config: &Fields<'_>, base: &Decoder) -> Result<Option<Self>, ModelError> {
        let count = ["num_local_experts", "num_experts"]
            .into_iter()
            .find(|name| config.get(name).is_some());
        let num_experts = config.count(count.unwrap_or("num_experts"), 128, MAX_EXPERTS)?;
        let mixture = Self {
            routing: Routing {
                num_experts,
                top_k: config.size("num_experts_per_tok", 8, MAX_EXPERTS)?,
                normalise: config.flag("norm_topk_prob", false)?,
            },
            moe_intermediate_size: config.size("moe_intermediate_size", 768, MAX_SIZE)?,
            decoder_sparse_step: config.size("decoder_sparse_step", 1, MAX_LAYERS)?,
            mlp_only_layers: config.counts("mlp_only_layers", MAX_LAYERS)?,
        };
        if num_experts == 0 || !(0..base.num_hidden_layers).any(|layer| mixture.is_sparse(layer)) {
            return Ok(None);
        }
        let Self { routing: Routing { top_k, .. }, moe_intermediate_size, .. } = mixture;
        if top_k > num_experts {
            let accepted = format!("at most num_experts, {num_experts}");
            return Err(refuse("num_experts_per_tok", &top_k, accepted));
        }
        let panels = |field: &str, size: usize| {
            let accepted = "a multiple of 16, as there are experts".to_owned();
            if size.is_multiple_of(16) { Ok(()) } else { Err(refuse(field, &size, accepted)) }
        };
        panels("moe_intermediate_size", moe_intermediate_size)?;
        panels("hidden_size", base.hidden_size)?;
        Ok(Some(mixture))
    }
}
