//! Attention over the paged cache.

use std::sync::Arc;

use sconce_kernels::{AttentionParams, Backend, KernelError, Mask};

use super::{Linear, Norm, RmsNorm};
use crate::{
    Buf, ModelError, Pass, RopeParams,
    config::Decoder,
    source::{Scope, Source, Weights},
};

/// How a layer attends. Its heads are of `rope.head_dim` elements.
#[derive(Clone, Debug)]
pub(crate) struct AttentionConfig {
    pub(crate) hidden_size: usize,
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    /// Whether the projections to Q, K and V have biases.
    pub(crate) qkv_bias: bool,
    /// Whether the projection of the heads' outputs has one.
    pub(crate) o_bias: bool,
    /// The norms of each head of Q and of K, where there are such: `q_norm` and `k_norm`.
    pub(crate) qk_norm: Option<Norm>,
    /// Factor on `q · k`.
    pub(crate) scale: f32,
    /// Positions that a query sees, if not all before it.
    pub(crate) sliding_window: Option<usize>,
    pub(crate) rope: RopeParams,
}

impl AttentionConfig {
    /// With a decoder's sizes: no biases, no norms of heads, no window, scores over the root
    /// of a head's elements.
    pub(crate) fn of(base: &Decoder) -> Self {
        Self {
            hidden_size: base.hidden_size,
            num_heads: base.num_attention_heads,
            num_kv_heads: base.num_key_value_heads,
            qkv_bias: false,
            o_bias: false,
            qk_norm: None,
            scale: (base.rope.head_dim as f32).sqrt().recip(),
            sliding_window: None,
            rope: base.rope,
        }
    }
}

/// Grouped-query attention with rotary embeddings.
pub(crate) struct Attention<W: Weights> {
    params: AttentionParams,
    /// Its layer in the cache.
    layer: usize,
    rope: Arc<W::Vector>,
    /// q_proj, k_proj and v_proj on top of each other.
    qkv_proj: Linear<W>,
    o_proj: Linear<W>,
    qk_norm: Option<QkNorm<W>>,
}

/// RMSNorm of each head of Q and of K, before they are rotated.
struct QkNorm<W: Weights> {
    q_norm: W::Vector,
    k_norm: W::Vector,
    eps: f32,
}

impl<W: Weights> Attention<W> {
    pub(crate) fn load<S: Source<W = W>>(
        s: &mut Scope<'_, S>,
        config: &AttentionConfig,
    ) -> Result<Self, ModelError> {
        let &AttentionConfig { hidden_size, num_heads, num_kv_heads, rope, .. } = config;
        let head_dim = rope.head_dim;
        let params = AttentionParams {
            num_heads,
            num_kv_heads,
            head_dim,
            scale: config.scale,
            mask: config.sliding_window.map_or(Mask::Causal, Mask::Sliding),
            soft_cap: None,
        };
        let (q, kv) = (num_heads * head_dim, num_kv_heads * head_dim);
        let qkv = [("q_proj", q), ("k_proj", kv), ("v_proj", kv)];
        Ok(Self {
            params,
            layer: s.cache_layer(params),
            rope: s.rope(&rope)?,
            qkv_proj: Linear::load(s, &qkv, hidden_size, config.qkv_bias)?,
            o_proj: Linear::load(s, &[("o_proj", hidden_size)], q, config.o_bias)?,
            qk_norm: config.qk_norm.map(|norm| QkNorm::load(s, head_dim, norm)).transpose()?,
        })
    }
}

impl<W: Weights> QkNorm<W> {
    fn load<S: Source<W = W>>(
        s: &mut Scope<'_, S>,
        head_dim: usize,
        norm: Norm,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            q_norm: norm.load(s, "q_norm", head_dim)?,
            k_norm: norm.load(s, "k_norm", head_dim)?,
            eps: norm.eps(),
        })
    }
}

impl<B: Backend> Attention<B> {
    /// Attends from `h [rows, hidden_size]`, normed, and adds to it.
    pub(crate) fn add_to(
        &self,
        p: &mut Pass<'_, B>,
        norm: &RmsNorm<B>,
        h: &mut Buf,
    ) -> Result<(), KernelError> {
        let qkv = match self.rotated(p, norm, h)? {
            Some(qkv) => qkv,
            None => {
                let qkv = norm.project(p, h, &self.qkv_proj, None)?;
                self.rotate(p, qkv)?
            }
        };
        let heads = self.attend(p, qkv)?;
        self.o_proj.add_to(p, heads, h)
    }

    /// Attends from `x [rows, hidden_size]`, and gives what is to be added, in its shape.
    pub(crate) fn forward(&self, p: &mut Pass<'_, B>, x: Buf) -> Result<Buf, KernelError> {
        let qkv = self.qkv_proj.forward(p, x)?;
        let qkv = self.rotate(p, qkv)?;
        let heads = self.attend(p, qkv)?;
        self.o_proj.forward(p, heads)
    }

    /// Q of `h [rows, hidden_size]`, normed, rotated, with K and V in the cache; `None` where the
    /// device takes several operations for it.
    fn rotated(
        &self,
        p: &mut Pass<'_, B>,
        norm: &RmsNorm<B>,
        h: &Buf,
    ) -> Result<Option<Buf>, KernelError> {
        let Self { params, layer, rope, qkv_proj, qk_norm, .. } = self;
        if qk_norm.is_some() {
            return Ok(None);
        }
        let mut out = p.take(qkv_proj.outputs())?;
        let (from, to) = p.ws.pair(h, &mut out);
        let (norm, w) = (norm.operands(), qkv_proj.operands());
        if p.ops.rope_of_normed(p.step, params, from, norm, w, rope, *layer, to, p.cache)? {
            return Ok(Some(out));
        }
        p.ws.free(out);
        Ok(None)
    }

    /// Rotates Q of Q, K and V end to end, and puts K and V into the cache.
    fn rotate(&self, p: &mut Pass<'_, B>, mut qkv: Buf) -> Result<Buf, KernelError> {
        let Self { params, layer, rope, qk_norm, .. } = self;
        let qk_norm = qk_norm.as_ref().map(|norm| (&norm.q_norm, &norm.k_norm, norm.eps));
        let in_place = p.ws.get_mut(&mut qkv);
        p.ops.rope_and_cache(p.step, params, rope, qk_norm, *layer, in_place, p.cache)?;
        Ok(qkv)
    }

    /// Of rotated Q the heads' outputs end to end, `[rows, num_heads * head_dim]`.
    fn attend(&self, p: &mut Pass<'_, B>, qkv: Buf) -> Result<Buf, KernelError> {
        let Self { params, layer, .. } = self;
        let mut out = p.take(params.num_heads * params.head_dim)?;
        let (from, to) = p.ws.pair(&qkv, &mut out);
        p.ops.paged_attention(p.step, params, *layer, from, p.cache, to)?;
        p.ws.free(qkv);
        Ok(out)
    }
}
