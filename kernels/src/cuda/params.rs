//! The kernels' parameter structs, field by field those of the `.cu` files, which
//! say what each is.

use std::mem::offset_of;

use bytemuck::{NoUninit, Pod, Zeroable};

use super::Launch;

/// An address on the device; 0 is null.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct DevicePointer(pub u64);

impl DevicePointer {
    /// Nothing.
    pub const NULL: Self = Self(0);

    /// What lies so many bytes behind it.
    #[must_use]
    pub const fn behind(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// A kernel's one parameter.
pub trait KernelParams: NoUninit {
    /// Where the pointers are, in bytes from the start.
    const POINTERS: &'static [usize];
}

/// A parameter struct and where its pointers are.
macro_rules! params {
    (
        $(#[$doc:meta])* $name:ident { $($pointer:ident),* ; $($field:ident: $type:ty),* $(,)? }
        $(with $($outer:ident . $inner:ident),*)?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, NoUninit)]
        #[repr(C)]
        #[expect(missing_docs, reason = "the .cu file says what each field is")]
        pub struct $name {
            $(pub $pointer: DevicePointer,)*
            $(pub $field: $type,)*
        }

        impl KernelParams for $name {
            const POINTERS: &'static [usize] = &[
                $(offset_of!($name, $pointer),)*
                $($(offset_of!($name, $outer.$inner)),*)?
            ];
        }
    };
}

params! {
    /// `embedding_gather.cu`; grid `[rows]`, 256 threads.
    EmbeddingGather { token_ids, table, out, last_sampled; pieces: u32, scale: f32 }
}

params! {
    /// `table_edits.cu`; grid `[edits by 256]`, 256 threads.
    TableEdits { edits, tables; num_edits: u32, padding: u32 }
}

/// What one of [`TableEdits`] changes.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
#[expect(missing_docs, reason = "the .cu file says what each field is")]
pub struct EntryEdit {
    pub entry: u32,
    pub block: u32,
}

params! {
    /// `rms_norm.cu`; grid [`RmsNorm::grid`], 256 threads.
    RmsNorm { x, weight, out; hidden: u32, eps: f32, rows: u32, padding: u32 }
}

params! {
    /// `soft_cap.cu`; any grid, 256 threads.
    SoftCap { x; elements: u32, cap: f32 }
}

params! {
    /// `add_bias.cu`; any grid, 256 threads.
    AddBias { bias, x; pieces: u32, rows: u32 }
}

params! {
    /// `gemv.cu`; grid and threads as [`GemvForm`] has it.
    Gemv {
        x, w, scales, bias, norm, out;
        n: u32,
        k: u32,
        epilogue: u32,
        runs: u32,
        eps: f32,
        padding: u32,
        rope: RopeEnd,
    } with rope.table, rope.positions, rope.slot_mapping, rope.cache
}

const _: () = assert!(size_of::<Gemv>() == 128, "as gemv.cu has it");

/// What becomes of Q, K and V in the launch of their product: `few_rows.cuh`.
#[derive(Clone, Copy, Debug, Default, PartialEq, NoUninit)]
#[repr(C)]
#[expect(missing_docs, reason = "the .cuh file says what each field is")]
pub struct RopeEnd {
    pub table: DevicePointer,
    pub positions: DevicePointer,
    pub slot_mapping: DevicePointer,
    pub cache: DevicePointer,
    pub num_heads: u32,
    pub num_kv_heads: u32,
    pub head_dim: u32,
    pub is_e4m3: u32,
    pub k_scale: f32,
    pub v_scale: f32,
}

params! {
    /// `skinny.cu`; grid, shared memory and the kernel as [`super::SkinnyPlan`] has them, 512 threads.
    Skinny {
        x, w, bias, norm, out;
        n: u32,
        k: u32,
        rows: u32,
        epilogue: u32,
        panel: u32,
        eps: f32,
        rope: RopeEnd,
    } with rope.table, rope.positions, rope.slot_mapping, rope.cache
}

const _: () = assert!(size_of::<Skinny>() == 120, "as skinny.cu has it");

params! {
    /// `fp8.cu`'s `quantize_rows`; grid `[rows]`, 256 threads.
    QuantizeRows { x, out, scales; pieces: u32, rows: u32 }
}

params! {
    /// `fp8.cu`'s `widen_weight`; any grid, 256 threads.
    WidenWeight { w, scales, out; pieces: u32, rows: u32, runs: u32, padding: u32 }
}

params! {
    /// `fp8.cu`'s `scale_sums`; any grid, 256 threads.
    ScaleSums {
        sums, row_scales, col_scales, out;
        rows: u32,
        cols: u32,
        first: u32,
        n: u32,
        adds: u32,
        padding: u32,
    }
}

params! {
    /// `gated.cu`; any grid, 256 threads.
    Gated { x, out; pieces: u32, rows: u32 }
}

params! {
    /// `route.cu`'s `route`; grid `[rows by 4]`, 128 threads.
    Route {
        scores, experts, weights;
        rows: u32,
        num_experts: u32,
        top_k: u32,
        normalise: u32,
    }
}

params! {
    /// `route.cu`'s `sort_by_expert`; grid `[experts by 8]`, 256 threads.
    SortByExpert {
        experts, sources, places, starts;
        choices: u32,
        num_experts: u32,
        top_k: u32,
        padding: u32,
    }
}

params! {
    /// `experts.cu`; grid [`ExpertProduct::grid`], 128 threads.
    ExpertProduct {
        x, w, scales, sources, starts, out;
        num_experts: u32,
        n: u32,
        k: u32,
        runs: u32,
    }
}

params! {
    /// `experts.cu`'s `add_experts`; any grid, 256 threads.
    AddExperts {
        x, weights, places, out;
        pieces: u32,
        rows: u32,
        top_k: u32,
        padding: u32,
    }
}

params! {
    /// `rope_and_cache.cu`; grid [`RopeAndCache::grid`], 128 threads.
    RopeAndCache {
        qkv, rope, positions, slot_mapping, q_norm, k_norm, cache;
        num_heads: u32,
        num_kv_heads: u32,
        head_dim: u32,
        eps: f32,
        k_scale: f32,
        v_scale: f32,
    }
}

params! {
    /// `blocks.cu`; grid `[pairs, layers]`, 256 threads.
    CopyBlocks {
        pairs, from, to;
        from_layer_bytes: u64,
        to_layer_bytes: u64,
        block_bytes: u32,
        padding: u32,
    }
}

params! {
    /// `prefill_attention.cu`, 256 threads, and `decode_attention.cu`, 128 threads; grid
    /// `[KV heads, work]`, shared memory as [`super::AttentionPlan`] has it.
    PagedAttention {
        work, q, cache, out, block_tables, partials, tickets;
        q_stride: u32,
        num_kv_heads: u32,
        group: u32,
        window: u32,
        scale: f32,
        soft_cap: f32,
        v_scale: f32,
        causal: u32,
    }
}

params! {
    /// `prefix_attention.cu`; grid, threads and shared memory as `prefill_attention.cu`'s.
    PrefixAttention {
        sharers;
        attention: PagedAttention,
    } with attention.work, attention.q, attention.cache, attention.out, attention.block_tables,
        attention.partials, attention.tickets
}

/// A sequence that shares a prefix with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, NoUninit)]
#[repr(C)]
#[expect(missing_docs, reason = "the .cu file says what each field is")]
pub struct Sharer {
    pub query: u32,
    pub partial: u32,
    pub num_partials: u32,
    pub padding: u32,
}

/// A tensor as its device has it described, for copies of boxes of it.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
pub struct TileMap(pub [u64; 16]);

/// `prefill_groups.cu`'s kernels that copy by boxes; grid and threads as the others there.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
#[expect(missing_docs, reason = "the .cu file says what each field is")]
pub struct BulkAttention {
    pub attention: PagedAttention,
    pub padding: [u32; 10],
    pub map: TileMap,
}

impl KernelParams for BulkAttention {
    // Those of an emulated device's map begin it.
    const POINTERS: &'static [usize] = &[
        offset_of!(Self, attention.work),
        offset_of!(Self, attention.q),
        offset_of!(Self, attention.cache),
        offset_of!(Self, attention.out),
        offset_of!(Self, attention.block_tables),
        offset_of!(Self, attention.partials),
        offset_of!(Self, attention.tickets),
        offset_of!(Self, map),
    ];
}

const _: () = assert!(offset_of!(BulkAttention, map) == 128, "as prefill_groups.cu has it");

params! {
    /// `sampling.cu`, 512 threads, [`SAMPLE_SHARED_BYTES`]: `sampling` of grid `[runs, rows]`,
    /// then `sampling_rest` of the same where a request has filters or reports tokens.
    Sampling {
        logits, requests, biases, banned, seen, masks, bias_raw, banned_raw, seen_raw, out, top,
        last_sampled, slices, runs, candidates, likeliest, bins, states;
        vocab_size: u32,
        padding: u32,
    }
}

params! {
    /// `sampling.cu`, 512 threads, [`SAMPLE_SHARED_BYTES`]: `token_logprobs` of grid
    /// `[runs, rows]`, then `token_logprobs_rest` of grid `[1, rows]` where tokens are reported.
    TokenLogprobs {
        logits, tokens, num_top, out, top, slices, runs, candidates, likeliest, bins, states;
        vocab_size: u32,
        padding: u32,
    }
}

/// Logits of a slice, which a block of [`Sampling`] looks at together.
pub const SAMPLE_SLICE: usize = 8192;

/// Slices that a row has at most.
pub const MAX_SAMPLE_SLICES: usize = 40;

/// Bytes of a block's dynamic shared memory.
pub const SAMPLE_SHARED_BYTES: usize = 2 * SAMPLE_SLICE * 4 + (2 * 1024 + 2048) * 4;

/// Bytes that [`Sampling`] needs in its workspace for each slice of each row, in `slices`.
pub const SAMPLE_SLICE_BYTES: usize = 32;

/// Bytes that it needs for each run of each row, in `runs`, `candidates`, `likeliest` and
/// `bins`.
pub const SAMPLE_RUN_BYTES: [usize; 4] = [24, 2048 * 8, 512 * 8, 2048 * 4];

/// Bytes that each row needs in `states`, zero before the first launch.
pub const SAMPLE_STATE_BYTES: usize = 16;

/// Likeliest tokens that a row of [`Sampling`] reports at most.
pub const MAX_TOP: usize = 32;

/// What one row of [`Sampling`] asks; lists are given by their borders.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
#[expect(missing_docs, reason = "the .cu file says what each field is")]
pub struct SampleRow {
    pub temperature: f32,
    pub top_p: f32,
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub top_k: u32,
    pub seed: [u32; 2],
    pub index: u32,
    pub num_logprobs: i32,
    pub bias: [u32; 2],
    pub banned: [u32; 2],
    pub seen: [u32; 2],
    pub mask: i32,
    pub slot: i32,
}

params! {
    /// `count_last.cu`; grid `[rows]`, 128 threads.
    CountLast { rows, seen, last_sampled; }
}

/// A row of [`CountLast`].
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
#[expect(missing_docs, reason = "the .cu file says what each field is")]
pub struct UncountedRow {
    pub slot: u32,
    pub seen: [u32; 2],
}

impl CountLast {
    /// A launch of so many rows.
    #[must_use]
    pub const fn launch(rows: u32) -> Launch<'static> {
        Launch {
            file: "count_last",
            kernel: "count_last",
            grid: [rows, 1],
            threads: 128,
            shared_bytes: 0,
        }
    }
}

/// What one row of [`Sampling`] gives.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
#[expect(missing_docs, reason = "the .cu file says what each field is")]
pub struct SampledRow {
    pub token: u32,
    pub logprob: f32,
    pub num_top: u32,
    pub rank: u32,
}

impl Sampling {
    /// Blocks that share a row's slices: enough for all multiprocessors to have two, which is
    /// as many as they hold, and each of equally many slices but for the last.
    #[must_use]
    pub const fn runs(vocab_size: usize, rows: usize, multiprocessors: usize) -> usize {
        let slices = vocab_size.div_ceil(SAMPLE_SLICE);
        let most = multiprocessors.saturating_mul(2) / if rows > 0 { rows } else { 1 };
        let most = if most > 1 { most } else { 1 };
        slices.div_ceil(slices.div_ceil(most))
    }

    /// The most runs that a launch of so many rows at most has, in all of its rows.
    #[must_use]
    pub const fn most_runs(max_rows: usize, multiprocessors: usize) -> usize {
        let most = multiprocessors.saturating_mul(2);
        if most > max_rows { most } else { max_rows }
    }
}

impl SampledRow {
    /// The token of a row that cannot be drawn from.
    pub const NON_FINITE: u32 = u32::MAX;
    /// The token of a row that has none left which may be drawn.
    pub const NOTHING_ALLOWED: u32 = u32::MAX - 1;
}

impl RopeAndCache {
    /// Threads of a block.
    pub const THREADS: u32 = 128;

    /// Blocks for so many tokens, with 4, 8 or 16 lanes for each head of Q, K and V, of which
    /// each has 8 dimensions of each half.
    #[must_use]
    pub const fn grid(tokens: u32, heads: u32, head_dim: u32) -> [u32; 2] {
        let lanes = match head_dim.div_ceil(16) {
            0..=4 => 4,
            5..=8 => 8,
            _ => 16,
        };
        [tokens, (heads * lanes).div_ceil(Self::THREADS)]
    }
}

impl Route {
    /// Experts that the kernel takes.
    pub const MAX_EXPERTS: usize = 512;
}

impl ExpertProduct {
    /// Threads of a block.
    pub const THREADS: u32 = 128;

    /// Blocks for so many outputs of a choice, and as many as such choices could need,
    /// whatever experts they are: a block has 32 choices of one.
    #[must_use]
    pub const fn grid(outputs: u32, is_gated: bool, choices: u32, num_experts: u32) -> [u32; 2] {
        let in_use = if choices < num_experts { choices } else { num_experts };
        [outputs.div_ceil(if is_gated { 32 } else { 64 }), in_use + (choices - in_use) / 32]
    }
}

impl RmsNorm {
    /// The longest row that the kernel without `_wide` in its name takes.
    pub const NARROW: usize = 4096;

    /// Blocks for so many rows: narrow ones are taken in turn by as many as there is room for.
    #[must_use]
    pub fn grid(rows: usize, hidden: usize, multiprocessors: usize) -> usize {
        let most = if hidden <= Self::NARROW { multiprocessors.saturating_mul(4) } else { rows };
        rows.min(most)
    }
}

impl Gemv {
    /// Rows of `x` at most.
    pub const MAX_ROWS: usize = 4;
    /// `epilogue`: sums are stored.
    pub const STORE: u32 = 0;
    /// They are added to what `out` holds.
    pub const ADD: u32 = 1;
    /// They are stored in f32.
    pub const STORE_F32: u32 = 2;
    /// Those of the first half gate the others, by way of SiLU.
    pub const SILU: u32 = 3;
    /// By way of GELU.
    pub const GELU: u32 = 4;
    /// Those of each head are rotated, and go where outputs go and to the cache.
    pub const ROPE: u32 = 5;
}

/// How `gemv.cu` is launched. No bit of a product depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemvForm {
    /// Rows of the weight that a warp reads side by side.
    pub rows: u32,
    /// Runs of 512 bytes that it asks for ahead, of each.
    pub ahead: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks of a multiprocessor.
    pub blocks: u32,
}

impl GemvForm {
    /// What is used unless a faster one was found.
    pub const DEFAULT: Self = Self { rows: 2, ahead: 4, threads: 512, blocks: 1 };
    /// Shared memory that a block has beside [`Self::shared_bytes`]: the system's, and what
    /// `gemv.cu` sums norms in.
    pub(super) const OTHER_SHARED_BYTES: usize = 2048;

    /// Dynamic shared memory of a block: `rows` of `x`, each with zeros at its end so that it
    /// is of whole batches of runs of a weight whose elements have so many bytes.
    #[must_use]
    pub const fn shared_bytes(self, rows: usize, k: usize, weight_bytes: usize) -> usize {
        rows * (k * 2).next_multiple_of(self.ahead as usize * 1024 / weight_bytes)
    }

    /// Outputs that a warp computes side by side, or pairs of them.
    #[must_use]
    pub const fn outputs(self, are_pairs: bool) -> usize {
        if are_pairs { self.rows as usize / 2 } else { self.rows as usize }
    }
}
