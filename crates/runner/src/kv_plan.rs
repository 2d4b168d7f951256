//! How a model's cache layers share the pool of blocks.

use sconce_kernels::{
    AttentionKind, AttentionParams, BLOCK_SIZE, CacheDtype, KvLayer, KvLayout, Mask, StepLimits,
};
use sconce_models::ModelSpec;
use sconce_types::{CacheGroups, MAX_CACHE_GROUPS, Span};

use crate::LoadError;

/// The groups that cache layers are in, and where their pages lie.
#[derive(Clone, Debug)]
pub(crate) struct KvPlan {
    /// Without blocks yet.
    pub(crate) layout: KvLayout,
    /// What the scheduler is to know of it.
    pub(crate) groups: CacheGroups,
    /// The ways in which layers attend, each with its group.
    pub(crate) attention: Vec<AttentionKind>,
    /// Regions that a group leaves empty, over all groups: bytes of blocks that hold nothing.
    pub(crate) num_padded: usize,
}

impl KvPlan {
    /// Deals the layers of each span into groups of at most n, so that a block is a page in
    /// each of n regions. Of all n that make few enough groups it takes the one with which a
    /// full context holds the fewest bytes, the largest of those that are equal: a model whose
    /// layers all keep everything has one group, and no padding.
    ///
    /// # Errors
    /// Layers whose pages are of different sizes.
    pub(crate) fn new(
        spec: &ModelSpec,
        dtype: CacheDtype,
        limits: &StepLimits,
        depth: usize,
    ) -> Result<Self, LoadError> {
        let shape = |params: &AttentionParams| (params.num_kv_heads, params.head_dim);
        let layers = &spec.cache_layers;
        let first = layers.first().map_or((1, BLOCK_SIZE), shape);
        if let Some(other) = layers.iter().map(shape).find(|&other| other != first) {
            return Err(LoadError::UnlikeCacheLayers { first, other });
        }
        let mut spans: Vec<(Span, Vec<usize>)> = Vec::new();
        for (index, params) in layers.iter().enumerate() {
            let span = span(params.mask);
            match spans.iter_mut().find(|(known, _)| *known == span) {
                Some((_, layers)) => layers.push(index),
                None => spans.push((span, vec![index])),
            }
        }
        let groups_of = |n: usize| {
            let dealt = spans.iter().flat_map(move |(span, layers)| {
                layers.chunks(n).map(move |layers| (*span, layers))
            });
            dealt.collect::<Vec<_>>()
        };
        let StepLimits { max_num_batched_tokens, max_model_len, .. } = *limits;
        let cost = |n: usize| {
            let spans: Vec<_> = groups_of(n).into_iter().map(|(span, _)| span).collect();
            let groups = CacheGroups::new(&spans);
            n * groups.peak_blocks(max_model_len, max_num_batched_tokens, depth)
        };
        let sizes = (1..=layers.len().max(1)).rev();
        let fitting = sizes.filter(|&n| groups_of(n).len() <= MAX_CACHE_GROUPS);
        let n = fitting.min_by_key(|&n| cost(n)).unwrap_or(1);
        let groups = groups_of(n);
        let num_groups = groups.len().max(1);
        let (num_kv_heads, head_dim) = first;
        let layer = |group, region| KvLayer { group, region, num_kv_heads, head_dim };
        let mut of_layers = vec![layer(0, 0); layers.len()];
        for (group, (_, members)) in groups.iter().enumerate() {
            for (region, &index) in members.iter().enumerate() {
                of_layers[index] = layer(group, region);
            }
        }
        let mut attention: Vec<AttentionKind> = Vec::new();
        for (params, layer) in layers.iter().zip(&of_layers) {
            let kind = AttentionKind { params: *params, group: layer.group };
            if !attention.contains(&kind) {
                attention.push(kind);
            }
        }
        let spans: Vec<Span> = groups.iter().map(|(span, _)| *span).collect();
        Ok(Self {
            num_padded: groups.iter().map(|(_, members)| n - members.len()).sum(),
            groups: if spans.is_empty() { CacheGroups::ONE } else { CacheGroups::new(&spans) },
            layout: KvLayout { num_blocks: 0, num_groups, layers: of_layers, dtype },
            attention,
        })
    }
}

/// What layers with this mask keep of a context.
fn span(mask: Mask) -> Span {
    match mask {
        Mask::None | Mask::Causal => Span::All,
        Mask::Sliding(window) => {
            u32::try_from(window).map_or(Span::All, |window| Span::Window(window.max(1)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: StepLimits =
        StepLimits { max_num_batched_tokens: 512, max_num_seqs: 4, max_model_len: 4096 };

    fn plan(masks: &[Mask]) -> KvPlan {
        let params = |&mask| AttentionParams {
            num_heads: 4,
            num_kv_heads: 1,
            head_dim: 256,
            scale: 1.0,
            mask,
            soft_cap: None,
        };
        let cache_layers = masks.iter().map(params).collect();
        let spec = ModelSpec { cache_layers, ..ModelSpec::default() };
        let plan = KvPlan::new(&spec, CacheDtype::Bf16, &LIMITS, 1).expect("equal layers");
        plan.layout.page_lens().expect("it can be laid out");
        plan
    }

    #[test]
    fn layers_that_keep_everything_are_one_group_of_a_region_each() {
        let plan = plan(&[Mask::Causal; 30]);
        assert_eq!(plan.groups, CacheGroups::ONE);
        let uniform = KvLayout::uniform(30, 0, (1, 256), CacheDtype::Bf16);
        assert_eq!(plan.layout, uniform);
        assert_eq!((plan.attention.len(), plan.num_padded), (1, 0));
    }

    /// As Gemma 3 270M: five layers with a window, then one without.
    #[test]
    fn a_window_leaves_what_its_layers_do_not_need() {
        let masks: Vec<_> = (0..18)
            .map(|layer| if layer % 6 == 5 { Mask::Causal } else { Mask::Sliding(512) })
            .collect();
        let plan = plan(&masks);
        let spans = plan.groups.spans();
        assert_eq!(spans.iter().filter(|&&span| span == Span::All).count(), 1);
        assert_eq!((spans.len(), plan.num_padded), (6, 0));
        let page = 2 * 256 * BLOCK_SIZE * 2;
        assert_eq!(plan.layout.block_bytes(), 3 * page);
        let peak = plan.groups.peak_blocks(4096, 512, 1) * plan.layout.block_bytes();
        let needed = (3 * 4096 + 15 * (511 + 512)) / BLOCK_SIZE * page;
        assert!(peak as f64 <= needed as f64 * 1.03, "{peak} bytes, of {needed} needed");
        let without = 18 * 4096 / BLOCK_SIZE * page;
        assert!(peak * 2 < without, "{peak} bytes, {without} without windows");
    }

    /// Once a prompt of 4,096 tokens is computed, blocks that only a window needs are few, and
    /// so are pages that stay empty.
    #[test]
    fn every_gemma_3_holds_what_its_windows_need_within_a_tenth() {
        for (num_layers, window) in [(18, 512), (26, 512), (34, 1024), (48, 1024), (62, 1024)] {
            let is_global = |layer: usize| layer % 6 == 5;
            let mask = |layer| if is_global(layer) { Mask::Causal } else { Mask::Sliding(window) };
            let plan = plan(&(0..num_layers).map(mask).collect::<Vec<_>>());
            let page = 2 * 256 * BLOCK_SIZE * 2;
            let held = |span: &Span| match span {
                Span::All => 4096 / BLOCK_SIZE,
                Span::Window(window) => *window as usize / BLOCK_SIZE,
            };
            let blocks: usize = plan.groups.spans().iter().map(held).sum();
            let held = blocks * plan.layout.block_bytes() / page * BLOCK_SIZE;
            let needed: usize =
                (0..num_layers).map(|layer| if is_global(layer) { 4096 } else { window }).sum();
            assert!(held >= needed, "{num_layers} layers: {held} of {needed}");
            assert!(held * 10 <= needed * 11, "{num_layers} layers: {held}, {needed} needed");
        }
    }

    #[test]
    fn odd_layers_are_padded_rather_than_many_groups_made() {
        let mut masks = vec![Mask::Sliding(64); 29];
        masks.push(Mask::Causal);
        let plan = plan(&masks);
        assert!(plan.groups.len() <= MAX_CACHE_GROUPS);
        assert!(plan.num_padded > 0);
    }
}
