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
use crate::{BLOCK_SIZE, CacheDtype, KernelError, KvLayer, KvLayout, StepLimits, TableEdit};

const _: () = assert!(LANES == BLOCK_SIZE, "a block's tokens are a panel's columns");

/// The keys and values of every layer, and the block tables of every slot.
pub struct CpuKvCache {
    layout: KvLayout,
    /// Where each layer's region starts, in elements.
    starts: Vec<usize>,
    data: Data,
    /// `[num_groups][max_num_seqs][blocks_per_seq]`
    tables: Vec<u32>,
    limits: StepLimits,
}

enum Data {
    F32(AlignedVec<f32>),
    Bf16(AlignedVec<u16>),
}

/// What a panel holds.
#[derive(Clone, Copy)]
pub(crate) enum KeyOrValue {
    Key,
    Value,
}

impl CpuKvCache {
    pub(crate) fn new(layout: &KvLayout, limits: &StepLimits) -> Result<Self, KernelError> {
        let page_lens = layout.page_lens()?;
        let is_odd = |layer: &&KvLayer| !layer.head_dim.is_multiple_of(LANES);
        if let Some(layer) = layout.layers.iter().find(is_odd) {
            return Err(KernelError::Shape {
                op: "kv_cache",
                what: "head_dim",
                got: layer.head_dim.to_string(),
                expected: "a multiple of 16".to_owned(),
            });
        }
        let what = format!("a KV cache of {} blocks", layout.num_blocks);
        let elements = layout
            .num_blocks
            .checked_mul(page_lens.iter().sum())
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
        let start =
            |layer: &KvLayer| layout.num_blocks * page_lens[..layer.region].iter().sum::<usize>();
        let entries = layout.table_bytes(limits) / size_of::<u32>();
        Ok(Self {
            starts: layout.layers.iter().map(start).collect(),
            layout: layout.clone(),
            data,
            tables: vec![0; entries],
            limits: *limits,
        })
    }

    /// The cache's shape.
    #[must_use]
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Changes block tables, by edits that were checked.
    pub(crate) fn edit_tables(&mut self, edits: &[TableEdit]) {
        for &TableEdit { group, slot, index, block } in edits {
            let start = self.table_start(group as usize, slot as usize);
            self.tables[start + index as usize] = block;
        }
    }

    /// What block tables there are: groups, slots and entries.
    pub(crate) fn limits(&self) -> &StepLimits {
        &self.limits
    }

    fn table_start(&self, group: usize, slot: usize) -> usize {
        (group * self.limits.max_num_seqs + slot) * self.limits.blocks_per_seq()
    }

    /// A layer; `None` if there is none of this index.
    pub(crate) fn layer(&self, index: usize) -> Option<LayerCache<'_>> {
        let layer = *self.layout.layers.get(index)?;
        Some(LayerCache { cache: self, layer, start: self.starts[index] })
    }

    /// A writer to one of the layers that the tasks of a region share.
    pub(crate) fn writer(&mut self, index: usize) -> KvWriter<'_> {
        let place = Place {
            start: self.starts[index],
            num_blocks: self.layout.num_blocks,
            layer: self.layout.layers[index],
        };
        match &mut self.data {
            Data::F32(data) => KvWriter { place, data: Shared::F32(SharedMut::new(data)) },
            Data::Bf16(data) => KvWriter { place, data: Shared::Bf16(SharedMut::new(data)) },
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

    /// Overwrites a block in all regions, as its next owner would.
    ///
    /// # Panics
    /// If there is no such block.
    #[doc(hidden)]
    pub fn poison_block(&mut self, block: usize, value: f32) {
        for (layer, &start) in self.layout.layers.iter().zip(&self.starts) {
            assert!(block < self.layout.num_blocks, "block {block} is outside the pool");
            let page = start + block * layer.page_len()..start + (block + 1) * layer.page_len();
            match &mut self.data {
                Data::F32(data) => data[page].fill(value),
                Data::Bf16(data) => data[page].fill(bf16_bits(value)),
            }
        }
    }
}

/// A layer's pages in its region.
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    num_blocks: usize,
    layer: KvLayer,
}

impl Place {
    /// Where one head's K, or V, starts in one block.
    fn head_start(&self, block: usize, which: KeyOrValue, head: usize) -> usize {
        let KvLayer { num_kv_heads, head_dim, .. } = self.layer;
        assert!(block < self.num_blocks, "block {block} is outside the pool");
        assert!(head < num_kv_heads, "the head is the layer's");
        let which = match which {
            KeyOrValue::Key => 0,
            KeyOrValue::Value => 1,
        };
        self.start + ((block * 2 + which) * num_kv_heads + head) * LANES * head_dim
    }
}

/// A layer of a cache, to be read.
#[derive(Clone, Copy)]
pub(crate) struct LayerCache<'a> {
    cache: &'a CpuKvCache,
    layer: KvLayer,
    start: usize,
}

impl<'a> LayerCache<'a> {
    pub(crate) fn shape(&self) -> &KvLayer {
        &self.layer
    }

    /// What its panels hold.
    pub(crate) fn panel_dtype(&self) -> PanelDtype {
        match self.cache.data {
            Data::F32(_) => PanelDtype::F32,
            Data::Bf16(_) => PanelDtype::Bf16,
        }
    }

    /// Bytes of an element.
    pub(crate) fn element_size(&self) -> usize {
        self.cache.layout.dtype.size()
    }

    /// A slot's block table.
    pub(crate) fn table(&self, slot: usize) -> &'a [u32] {
        let start = self.cache.table_start(self.layer.group, slot);
        &self.cache.tables[start..][..self.cache.limits.blocks_per_seq()]
    }

    /// Where one head's panels start. A step of a panel is 64 bytes.
    pub(crate) fn panels(&self, block: usize, which: KeyOrValue, head: usize) -> *const u8 {
        let place = Place {
            start: self.start,
            num_blocks: self.cache.layout.num_blocks,
            layer: self.layer,
        };
        let range = place.head_start(block, which, head)..;
        let len = LANES * self.layer.head_dim;
        match &self.cache.data {
            Data::F32(data) => data[range][..len].as_ptr().cast(),
            Data::Bf16(data) => data[range][..len].as_ptr().cast(),
        }
    }
}

/// Writes tokens into a layer of the cache, from many tasks.
pub(crate) struct KvWriter<'a> {
    place: Place,
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
    /// No other task writes K, or V, of the same head of the same block.
    pub(crate) unsafe fn write(&self, slot: usize, which: KeyOrValue, head: usize, x: &[f32]) {
        let (block, offset) = (slot / LANES, slot % LANES);
        let len = LANES * self.place.layer.head_dim;
        let start = self.place.head_start(block, which, head);
        match &self.data {
            Shared::F32(data) => {
                // SAFETY: the caller keeps K and V of heads of blocks apart.
                let out = unsafe { data.slice(start, len) };
                write_head::<_, 1>(offset, which, x, out, |x| x);
            }
            Shared::Bf16(data) => {
                // SAFETY: the caller keeps K and V of heads of blocks apart.
                let out = unsafe { data.slice(start, len) };
                write_head::<_, 2>(offset, which, x, out, bf16_bits);
            }
        }
    }
}

/// Writes a head of the token at `offset` into its block, of which `PAIR` steps
/// of k are interleaved.
fn write_head<T: Copy + Default, const PAIR: usize>(
    offset: usize,
    which: KeyOrValue,
    x: &[f32],
    out: &mut [T],
    convert: impl Fn(f32) -> T,
) {
    if offset == 0 {
        out.fill(T::default());
    }
    match which {
        // The token is a column; `head_dim` is k.
        KeyOrValue::Key => {
            for (step, x) in out.chunks_exact_mut(LANES * PAIR).zip(x.chunks_exact(PAIR)) {
                for (out, &x) in step[offset * PAIR..].iter_mut().zip(x) {
                    *out = convert(x);
                }
            }
        }
        // The token is a k; 16 of `head_dim` are a panel's columns.
        KeyOrValue::Value => {
            for (panel, x) in out.chunks_exact_mut(LANES * LANES).zip(x.chunks_exact(LANES)) {
                let step = &mut panel[offset / PAIR * PAIR * LANES..][..PAIR * LANES];
                for (out, &x) in step.chunks_exact_mut(PAIR).zip(x) {
                    out[offset % PAIR] = convert(x);
                }
            }
        }
    }
}
