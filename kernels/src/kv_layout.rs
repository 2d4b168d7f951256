//! The shape of the paged KV cache.

use crate::{CacheDtype, KernelError, StepLimits};

/// Tokens of a KV cache block. The kernels are written for this number.
pub const BLOCK_SIZE: usize = 16;

/// A paged KV cache: layers in groups, each group with block tables of its own, over one
/// pool of blocks.
///
/// A block is a page in every region. Layers of different groups may share a region, since
/// a block belongs to one sequence's table of one group at a time; layers of one group may
/// not. A layer's part of its region is
/// `[num_blocks, 2 (K, V), num_kv_heads, BLOCK_SIZE, head_dim]`, in an order of the
/// device's own within a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// Groups of layers.
    pub num_groups: usize,
    /// The cache's layers, by the index that operations are given.
    pub layers: Vec<KvLayer>,
    /// Element type.
    pub dtype: CacheDtype,
}

/// A layer of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayer {
    /// Its group, below [`KvLayout::num_groups`].
    pub group: usize,
    /// Where its pages lie. Regions count from 0 without a gap, and pages of one region
    /// are of equal size.
    pub region: usize,
    /// Heads of K and V.
    pub num_kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
}

impl KvLayer {
    /// Elements of one block's K and V.
    #[must_use]
    pub const fn page_len(&self) -> usize {
        2 * self.num_kv_heads * BLOCK_SIZE * self.head_dim
    }
}

impl KvLayout {
    /// One group of equal layers, a region each.
    #[must_use]
    pub fn uniform(
        num_layers: usize,
        num_blocks: usize,
        (num_kv_heads, head_dim): (usize, usize),
        dtype: CacheDtype,
    ) -> Self {
        let layer = |region| KvLayer { group: 0, region, num_kv_heads, head_dim };
        Self { num_blocks, num_groups: 1, layers: (0..num_layers).map(layer).collect(), dtype }
    }

    /// Elements of a block's page in each region.
    ///
    /// # Errors
    /// A group beyond the groups, a region that is left out or has pages of two sizes, two
    /// layers of one group in one region.
    pub fn page_lens(&self) -> Result<Vec<usize>, KernelError> {
        let num_regions = self.layers.iter().map(|layer| layer.region + 1).max().unwrap_or(0);
        let mut lens = vec![0; num_regions.min(self.layers.len())];
        for (index, layer) in self.layers.iter().enumerate() {
            let refuse = |what, got: usize, expected: String| {
                let got = format!("{got} (layer {index})");
                Err(KernelError::Shape { op: "kv_cache", what, got, expected })
            };
            let KvLayer { group, region, .. } = *layer;
            if group >= self.num_groups {
                return refuse("a group", group, format!("below {}", self.num_groups));
            }
            let Some(len) = lens.get_mut(region) else {
                return refuse("a region", region, "without gaps from 0 on".to_owned());
            };
            if *len != 0 && *len != layer.page_len() {
                return refuse("a page's elements", layer.page_len(), format!("{len}"));
            }
            *len = layer.page_len();
            let is_same = |other: &KvLayer| (other.group, other.region) == (group, region);
            if self.layers[..index].iter().any(is_same) {
                return refuse("a region", region, "another for each layer of a group".to_owned());
            }
        }
        match lens.iter().position(|&len| len == 0) {
            None => Ok(lens),
            Some(region) => Err(KernelError::Shape {
                op: "kv_cache",
                what: "the layers of a region",
                got: format!("none ({region})"),
                expected: "one at least, with heads that have elements".to_owned(),
            }),
        }
    }

    /// Bytes of the block tables `[num_groups, max_num_seqs, blocks_per_seq]` of such limits.
    #[must_use]
    pub const fn table_bytes(&self, limits: &StepLimits) -> usize {
        self.num_groups * limits.max_num_seqs * limits.blocks_per_seq() * size_of::<u32>()
    }

    /// Bytes that one block takes over all regions.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        let is_first = |index: usize, layer: &KvLayer| {
            self.layers[..index].iter().all(|other| other.region != layer.region)
        };
        let layers = self.layers.iter().enumerate();
        let pages = layers.filter(|&(index, layer)| is_first(index, layer));
        pages.map(|(_, layer)| layer.page_len() * self.dtype.size()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::{KvLayer, KvLayout};
    use crate::CacheDtype;

    #[test]
    fn groups_share_regions_and_what_cannot_be_laid_out_is_refused() {
        let layer =
            |group, region, num_kv_heads| KvLayer { group, region, num_kv_heads, head_dim: 32 };
        let layout = |layers: &[KvLayer]| KvLayout {
            num_blocks: 5,
            num_groups: 2,
            layers: layers.to_vec(),
            dtype: CacheDtype::Bf16,
        };
        let shared = layout(&[layer(0, 0, 1), layer(1, 0, 1), layer(1, 1, 2)]);
        assert_eq!(shared.page_lens().expect("it can be laid out"), [1024, 2048]);
        assert_eq!(shared.block_bytes(), 2 * (1024 + 2048));
        let uniform = KvLayout::uniform(3, 5, (2, 32), CacheDtype::F32);
        assert_eq!(uniform.page_lens().expect("it can be laid out"), [2048; 3]);
        assert_eq!(uniform.block_bytes(), 4 * 3 * 2048);
        for (layers, word) in [
            (&[layer(2, 0, 1)][..], "below 2"),
            (&[layer(0, 1, 1)], "gaps"),
            (&[layer(0, 0, 1), layer(0, 2, 1), layer(1, 2, 1)], "none (1)"),
            (&[layer(0, 0, 1), layer(1, 0, 2)], "2048 (layer 1)"),
            (&[layer(0, 0, 1), layer(0, 0, 1)], "another"),
            (&[layer(0, 0, 0)], "none (0)"),
        ] {
            let refused = layout(layers).page_lens().expect_err(word);
            assert!(refused.to_string().contains(word), "{refused}");
        }
    }
}
