//! The Llama family: Llama 2 and 3, SmolLM2, Mistral.

use std::ops::Range;

use sconce_kernels::{Activation, AttentionParams, Backend, KernelError, Mask};

use crate::{
    CausalLm, ModelConfig, ModelError, ModelShape, Workspace, rope_table,
    weights::{Source, Vocabulary},
};

/// A Llama model; its fields follow the forward pass, with the checkpoint's names.
pub(crate) struct Llama<M, V> {
    shape: ModelShape,
    attention: AttentionParams,
    rms_norm_eps: f32,
    rope: V,
    embed_tokens: M,
    layers: Vec<Layer<M, V>>,
    norm: V,
    /// `None`: the embedding's transpose.
    lm_head: Option<M>,
}

struct Layer<M, V> {
    input_layernorm: V,
    /// q_proj, k_proj and v_proj on top of each other.
    qkv_proj: Linear<M, V>,
    o_proj: Linear<M, V>,
    post_attention_layernorm: V,
    /// gate_proj and up_proj on top of each other.
    gate_up_proj: Linear<M, V>,
    down_proj: Linear<M, V>,
}

struct Linear<M, V> {
    weight: M,
    bias: Option<V>,
}

impl<M, V> Llama<M, V> {
    /// Takes every weight from `source`: the one place that names them.
    pub(crate) fn build<S: Source<Matrix = M, Vector = V>>(
        config: &ModelConfig,
        vocabulary: &Vocabulary,
        max_positions: usize,
        source: &mut S,
    ) -> Result<Self, ModelError> {
        let shape = ModelShape {
            num_layers: config.num_layers,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            vocab_size: config.vocab_size,
        };
        let embedding = |name: &str| [(name.to_owned(), config.vocab_size)];
        let hidden = config.hidden_size;
        Ok(Self {
            shape,
            attention: AttentionParams {
                num_heads: config.num_heads,
                num_kv_heads: config.num_kv_heads,
                head_dim: config.head_dim,
                scale: (config.head_dim as f32).sqrt().recip(),
                mask: config.sliding_window.map_or(Mask::Causal, Mask::Sliding),
                soft_cap: None,
            },
            rms_norm_eps: config.rms_norm_eps,
            rope: source.table(|| rope_table(config, max_positions))?,
            embed_tokens: source.matrix(&embedding(vocabulary.embed_tokens), hidden)?,
            layers: (0..config.num_layers)
                .map(|index| Layer::build(config, index, source))
                .collect::<Result<_, _>>()?,
            norm: source.vector(&[("model.norm.weight".to_owned(), hidden)])?,
            lm_head: match vocabulary.lm_head {
                None => None,
                Some(name) => Some(source.matrix(&embedding(name), hidden)?),
            },
        })
    }
}

impl<M, V> Layer<M, V> {
    fn build<S: Source<Matrix = M, Vector = V>>(
        config: &ModelConfig,
        index: usize,
        source: &mut S,
    ) -> Result<Self, ModelError> {
        let hidden = config.hidden_size;
        let q = config.num_heads * config.head_dim;
        let kv = config.num_kv_heads * config.head_dim;
        let intermediate = config.intermediate_size;
        let mut layer = Names { source, prefix: format!("model.layers.{index}") };
        let qkv = [("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)];
        let gate_up = [("mlp.gate_proj", intermediate), ("mlp.up_proj", intermediate)];
        Ok(Self {
            input_layernorm: layer.norm("input_layernorm", hidden)?,
            qkv_proj: layer.linear(&qkv, hidden, config.attention_bias)?,
            o_proj: layer.linear(&[("self_attn.o_proj", hidden)], q, config.attention_bias)?,
            post_attention_layernorm: layer.norm("post_attention_layernorm", hidden)?,
            gate_up_proj: layer.linear(&gate_up, hidden, config.mlp_bias)?,
            down_proj: layer.linear(&[("mlp.down_proj", hidden)], intermediate, config.mlp_bias)?,
        })
    }
}

/// A layer's weights by their names within it.
struct Names<'a, S> {
    source: &'a mut S,
    prefix: String,
}

impl<S: Source> Names<'_, S> {
    fn full(&self, parts: &[(&str, usize)], kind: &str) -> Vec<(String, usize)> {
        let prefix = &self.prefix;
        parts.iter().map(|(name, n)| (format!("{prefix}.{name}.{kind}"), *n)).collect()
    }

    fn norm(&mut self, name: &str, n: usize) -> Result<S::Vector, ModelError> {
        let names = self.full(&[(name, n)], "weight");
        self.source.vector(&names)
    }

    fn linear(
        &mut self,
        parts: &[(&str, usize)],
        k: usize,
        has_bias: bool,
    ) -> Result<Linear<S::Matrix, S::Vector>, ModelError> {
        let (weights, biases) = (self.full(parts, "weight"), self.full(parts, "bias"));
        Ok(Linear {
            weight: self.source.matrix(&weights, k)?,
            bias: if has_bias { Some(self.source.vector(&biases)?) } else { None },
        })
    }
}

impl<B: Backend> CausalLm<B> for Llama<B::Matrix, B::Vector> {
    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn attention(&self) -> &AttentionParams {
        &self.attention
    }

    fn forward(
        &self,
        backend: &mut B,
        step: &B::Step,
        rows: usize,
        cache: &mut B::KvCache,
        workspace: &mut Workspace<B>,
    ) -> Result<(), KernelError> {
        let Workspace { hidden, normed, qkv, attended, activated, gate_up, .. } = workspace;
        backend.embedding_gather(step, &self.embed_tokens, hidden)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let eps = self.rms_norm_eps;
            backend.rms_norm(rows, hidden, &layer.input_layernorm, eps, normed)?;
            let Linear { weight, bias } = &layer.qkv_proj;
            backend.linear(rows, normed, weight, bias.as_ref(), qkv)?;
            let (attention, rope) = (&self.attention, &self.rope);
            backend.rope_and_cache(step, attention, rope, None, index, qkv, cache)?;
            backend.paged_attention(step, attention, index, qkv, cache, attended)?;
            let Linear { weight, bias } = &layer.o_proj;
            backend.linear_add(rows, attended, weight, bias.as_ref(), hidden)?;
            backend.rms_norm(rows, hidden, &layer.post_attention_layernorm, eps, normed)?;
            let Linear { weight, bias } = &layer.gate_up_proj;
            let (bias, scratch) = (bias.as_ref(), gate_up.as_mut());
            let silu = Activation::Silu;
            backend.linear_gated(rows, normed, weight, bias, silu, scratch, activated)?;
            let Linear { weight, bias } = &layer.down_proj;
            backend.linear_add(rows, activated, weight, bias.as_ref(), hidden)?;
        }
        Ok(())
    }

    fn logits(
        &self,
        backend: &mut B,
        step: &B::Step,
        range: Range<usize>,
        workspace: &mut Workspace<B>,
    ) -> Result<(), KernelError> {
        let Workspace { hidden, last_hidden, last_normed, logits, .. } = workspace;
        let rows = range.len();
        backend.gather_rows(step, range, hidden, last_hidden)?;
        backend.rms_norm(rows, last_hidden, &self.norm, self.rms_norm_eps, last_normed)?;
        let lm_head = self.lm_head.as_ref().unwrap_or(&self.embed_tokens);
        backend.linear(rows, last_normed, lm_head, None, logits)
    }
}
