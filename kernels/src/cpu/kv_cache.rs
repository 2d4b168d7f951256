//! The paged cache of keys and values, laid out for [`super::tile`].
//!
//! A block holds 16 tokens of one layer: for each KV head a panel of K and
//! panels of V. K's panel has the block's tokens as its 16 columns and
//! `head_dim` as k, so that scores are a product with queries; V's panels have
//! 16 of `head_dim` as columns and the block's tokens as k, so that outputs are
//! a product with probabilities:
//!
//! ```text
//! layer → block → { K, V } → head →   K  [head_dim][16 tokens]
//!                                     V  [head_dim / 16][16 tokens][16]
//! ```
//!
//! with steps of k interleaved in pairs in bf16, as everywhere.
#![expect(unsafe_code, reason = "tasks write the blocks of disjoint rows and heads")]

use super::{
    PanelDtype, aligned::AlignedVec, shared_mut::SharedMut, tile::LANES, vector::bf16_bits,
};
use crate::{CacheDtype, KernelError, KvLayout};

/// The keys and values of every layer.
pub struct CpuKvCache {
    layout: KvLayout,
    data: Data,
}

enum Data {
    F32(AlignedVec<f32>),
    Bf16(AlignedVec<u16>),
}

/// K or V.
#[derive(Clone, Copy)]
pub(crate) enum Half {
    K,
    V,
}

impl CpuKvCache {
    pub(crate) fn new(layout: KvLayout) -> Result<Self, KernelError> {
        if layout.head_dim == 0 || !layout.head_dim.is_multiple_of(LANES) {
            return Err(KernelError::Shape {
                op: "kv_cache",
                what: "head_dim",
                got: layout.head_dim.to_string(),
                expected: "a multiple of 16".to_owned(),
            });
        }
        let what = format!("a KV cache of {} blocks", layout.num_blocks);
        let elements = layout
            .num_blocks
            .checked_mul(layout.block_bytes() / layout.dtype.size())
            .ok_or_else(|| KernelError::OutOfMemory { what: what.clone(), bytes: usize::MAX })?;
        let data = match layout.dtype {
            CacheDtype::F32 => Data::F32(AlignedVec::zeroed(elements, &what)?),
            CacheDtype::Bf16 => Data::Bf16(AlignedVec::zeroed(elements, &what)?),
            CacheDtype::F16 | CacheDtype::Fp8E4m3 => {
                return Err(KernelError::Unsupported {
                    what: format!("a KV cache of {:?}", layout.dtype),
                    device: "a CPU",
                    accepted: "bfloat16 and float32 are",
                });
            }
        };
        Ok(Self { layout, data })
    }

    /// The cache's shape.
    #[must_use]
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// What its panels hold.
    pub(crate) fn panel_dtype(&self) -> PanelDtype {
        match self.data {
            Data::F32(_) => PanelDtype::F32,
            Data::Bf16(_) => PanelDtype::Bf16,
        }
    }

    /// Elements of one head's K, or V, in one block.
    fn head_len(&self) -> usize {
        LANES * self.layout.head_dim
    }

    fn head_start(&self, layer: usize, block: usize, half: Half, head: usize) -> usize {
        head_start(&self.layout, layer, block, half, head)
    }

    /// Where one head's panels start. A step of a panel is 64 bytes.
    pub(crate) fn panels(&self, layer: usize, block: usize, half: Half, head: usize) -> *const u8 {
        let range = self.head_start(layer, block, half, head)..;
        let len = self.head_len();
        match &self.data {
            Data::F32(data) => data[range][..len].as_ptr().cast(),
            Data::Bf16(data) => data[range][..len].as_ptr().cast(),
        }
    }

    /// A writer that the tasks of a region share.
    pub(crate) fn writer(&mut self) -> KvWriter<'_> {
        let layout = self.layout;
        match &mut self.data {
            Data::F32(data) => KvWriter { layout, data: Shared::F32(SharedMut::new(data)) },
            Data::Bf16(data) => KvWriter { layout, data: Shared::Bf16(SharedMut::new(data)) },
        }
    }

    /// Overwrites every element, to show that what is unused is not read.
    #[doc(hidden)]
    pub fn poison(&mut self, value: f32) {
        match &mut self.data {
            Data::F32(data) => data.fill(value),
            Data::Bf16(data) => data.fill(bf16_bits(value)),
        }
    }
}

fn head_start(layout: &KvLayout, layer: usize, block: usize, half: Half, head: usize) -> usize {
    assert!(block < layout.num_blocks, "block {block} is outside the pool");
    assert!(
        layer < layout.num_layers && head < layout.num_kv_heads,
        "layer and head are the model's"
    );
    let half = match half {
        Half::K => 0,
        Half::V => 1,
    };
    let index = ((layer * layout.num_blocks + block) * 2 + half) * layout.num_kv_heads + head;
    index * LANES * layout.head_dim
}

/// Writes tokens into the cache, from many tasks.
pub(crate) struct KvWriter<'a> {
    layout: KvLayout,
    data: Shared<'a>,
}

enum Shared<'a> {
    F32(SharedMut<'a, f32>),
    Bf16(SharedMut<'a, u16>),
}

impl KvWriter<'_> {
    /// Writes one token's K or V of one head. The first token of a block clears
    /// it: attention reads whole blocks and gives what lies beyond the context
    /// the weight 0, which would not cancel a stale NaN.
    ///
    /// # Safety
    /// No other task writes the same half of the same head of the same block.
    pub(crate) unsafe fn write(
        &self,
        layer: usize,
        slot: usize,
        half: Half,
        head: usize,
        x: &[f32],
    ) {
        let (block, offset) = (slot / LANES, slot % LANES);
        let len = LANES * self.layout.head_dim;
        let start = head_start(&self.layout, layer, block, half, head);
        match &self.data {
            Shared::F32(data) => {
                // SAFETY: the caller keeps halves of heads of blocks apart.
                let out = unsafe { data.slice(start, len) };
                write_head::<_, 1>(offset, half, x, out, |x| x);
            }
            Shared::Bf16(data) => {
                // SAFETY: the caller keeps halves of heads of blocks apart.
                let out = unsafe { data.slice(start, len) };
                write_head::<_, 2>(offset, half, x, out, bf16_bits);
            }
        }
    }
}

/// Writes a head of the token at `offset` into its block, of which `PAIR` steps
/// of k are interleaved.
fn write_head<T: Copy + Default, const PAIR: usize>(
    offset: usize,
    half: Half,
    x: &[f32],
    out: &mut [T],
    convert: impl Fn(f32) -> T,
) {
    if offset == 0 {
        out.fill(T::default());
    }
    match half {
        // The token is a column; `head_dim` is k.
        Half::K => {
            for (step, x) in out.chunks_exact_mut(LANES * PAIR).zip(x.chunks_exact(PAIR)) {
                for (out, &x) in step[offset * PAIR..].iter_mut().zip(x) {
                    *out = convert(x);
                }
            }
        }
        // The token is a k; 16 of `head_dim` are a panel's columns.
        Half::V => {
            for (panel, x) in out.chunks_exact_mut(LANES * LANES).zip(x.chunks_exact(LANES)) {
                let step = &mut panel[offset / PAIR * PAIR * LANES..][..PAIR * LANES];
                for (out, &x) in step.chunks_exact_mut(PAIR).zip(x) {
                    out[offset % PAIR] = convert(x);
                }
            }
        }
    }
}
