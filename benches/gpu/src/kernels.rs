//! What the kernels reach, on random data larger than the caches.
//!
//! Bytes and operations are the fewest that the task takes: each input read once, each
//! output written once.

use std::cmp::Ordering;

use anyhow::Result;
use candle_core::Tensor;
use clap::ValueEnum as _;
use sconce_kernels::{
    Activation, AttentionKind, AttentionParams, BLOCK_SIZE, CacheDtype, Device as _, Dtype,
    KvLayout, Mask, Ops as _, StepLimits, StepPlan,
    cuda::{Cuda, CudaBuffer, CudaKvCache, CudaMatrix, CudaStep, Driver, PromptForm},
    ops::sampling::uniform,
};
use serde_json::json;

use crate::{few_rows, fp8, report, sampling, timing::seconds};

/// Inputs that take turns, so that none is found in a cache.
const TURNS: usize = 6;

struct Sizes {
    /// Rows of the elementwise operations.
    tokens: usize,
    /// And of norms.
    norm_rows: &'static [usize],
    hidden: usize,
    intermediate: usize,
    decode_batches: &'static [usize],
    decode_contexts: &'static [usize],
    /// Batch and context with an e4m3 cache.
    decode_fp8: &'static [(usize, usize)],
    /// Batch, context, and how many of its tokens all have in common.
    decode_shared: &'static [(usize, usize, usize)],
    /// Tokens that are computed, those before them in the cache, and the group.
    prefills: &'static [(usize, usize, usize)],
    /// The same that are measured by every form too.
    prefills_by_form: &'static [(usize, usize, usize)],
    sample_rows: &'static [usize],
    vocab_size: usize,
    gemm_rows: &'static [usize],
}

const FULL: Sizes = Sizes {
    tokens: 4096,
    norm_rows: &[1, 128, 4096, 8192],
    hidden: 4096,
    intermediate: 14_336,
    decode_batches: &[1, 8, 32, 128],
    decode_contexts: &[1024, 4096],
    decode_fp8: &[(32, 4096), (128, 1024)],
    decode_shared: &[(128, 4096, 3840), (128, 1024, 768), (32, 8192, 7936), (8, 8192, 7936)],
    prefills: &[(1024, 0, 4), (8192, 0, 4), (8192, 0, 8), (512, 7680, 4), (64, 32_704, 4)],
    prefills_by_form: &[(1024, 0, 4), (8192, 0, 4)],
    sample_rows: &[1, 32, 256],
    vocab_size: 128_256,
    gemm_rows: &[1, 8, 32, 128, 256, 2048, 8192],
};

const DRY: Sizes = Sizes {
    tokens: 4,
    norm_rows: &[1, 4],
    hidden: 256,
    intermediate: 64,
    decode_batches: &[2],
    decode_contexts: &[40],
    decode_fp8: &[(2, 40)],
    decode_shared: &[(4, 270, 256)],
    prefills: &[(24, 0, 4), (5, 19, 8)],
    prefills_by_form: &[(24, 0, 4)],
    sample_rows: &[1, 2],
    vocab_size: 512,
    gemm_rows: &[2],
};

/// Kernels that are measured by one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Group {
    Elementwise,
    Products,
    FewRows,
    Fp8,
    Decode,
    Prefill,
    Sampling,
}

/// Prints the groups' names.
pub(crate) fn list() {
    let values = Group::value_variants().iter().filter_map(clap::ValueEnum::to_possible_value);
    values.for_each(|value| report(&json!({ "group": value.get_name() })));
}

/// Measures the kernels of a group, or all.
pub(crate) fn run<D: Driver>(driver: D, only: Option<Group>, dry_run: bool) -> Result<()> {
    let sizes = if dry_run { DRY } else { FULL };
    let batches = sizes.decode_batches.iter().chain(sizes.gemm_rows).chain(sizes.sample_rows);
    let most = batches.copied().max().unwrap_or(1);
    let shared = sizes.decode_shared.iter().map(|&(_, context, _)| context);
    let context = sizes.decode_contexts.iter().copied().chain(shared).max().unwrap_or(1);
    let prefills = sizes.prefills.iter().map(|(new, cached, _)| new + cached);
    let longest = prefills.fold(context, usize::max).next_multiple_of(16);
    let limits = StepLimits {
        max_num_batched_tokens: sizes.tokens.max(longest).max(most),
        max_num_seqs: most,
        max_model_len: longest,
    };
    report(&json!({ "device": driver.describe() }));
    let mut cuda = Cuda::new(driver, Dtype::Bf16, limits)?;
    for &group in Group::value_variants() {
        if only.is_some_and(|only| only != group) {
            continue;
        }
        match group {
            Group::Elementwise => elementwise(&mut cuda, &sizes, dry_run)?,
            Group::Products => products(&mut cuda, &sizes, dry_run)?,
            Group::FewRows => {
                let Sizes { hidden, intermediate, vocab_size, .. } = sizes;
                few_rows::run(&mut cuda, (hidden, intermediate, vocab_size), dry_run)?;
            }
            Group::Fp8 => {
                let Sizes { hidden, intermediate, gemm_rows, .. } = sizes;
                fp8::run(&mut cuda, (hidden, intermediate), gemm_rows, dry_run)?;
            }
            Group::Decode => {
                for group in [4, 8] {
                    for &context in sizes.decode_contexts {
                        for &batch in sizes.decode_batches {
                            let shape = (batch, context);
                            decode(&mut cuda, group, shape, CacheDtype::Bf16, dry_run)?;
                        }
                    }
                    for &shape in sizes.decode_fp8 {
                        decode(&mut cuda, group, shape, CacheDtype::Fp8E4m3, dry_run)?;
                    }
                    for &shape in sizes.decode_shared {
                        decode_shared(&mut cuda, group, shape, dry_run)?;
                    }
                }
            }
            Group::Prefill => {
                for &(new, cached, group) in sizes.prefills {
                    prefill(&mut cuda, group, (new, cached), &[None], dry_run)?;
                }
                let forms = PromptForm::ALL.map(Some);
                for &(new, cached, group) in sizes.prefills_by_form {
                    prefill(&mut cuda, group, (new, cached), &forms, dry_run)?;
                }
            }
            Group::Sampling => {
                for &rows in sizes.sample_rows {
                    sampling::whole(&mut cuda, rows, sizes.vocab_size, dry_run)?;
                    sampling::kernels(&mut cuda, rows, sizes.vocab_size, dry_run)?;
                }
            }
        }
    }
    Ok(())
}

/// A result: the figure is bytes or operations a second, or only the time.
pub(crate) fn result(kernel: &str, seconds: f64, bytes: usize, operations: f64) {
    let per_second = |n: f64| if n > 0.0 { Some(n / seconds) } else { None };
    report(&json!({
        "kernel": kernel,
        "seconds": seconds,
        "bytes_per_second": per_second(bytes as f64),
        "operations_per_second": per_second(operations),
    }));
}

/// Random numbers in [-1, 1) of a repeating pattern, which no cache line repeats.
pub(crate) fn random(seed: u64, rows: usize, cols: usize) -> Result<Tensor> {
    const PERIOD: u32 = 65_521;
    let pattern: Vec<f32> = (0..PERIOD).map(|i| (uniform(seed, i) * 2.0 - 1.0) as f32).collect();
    let numbers: Vec<f32> = pattern.iter().copied().cycle().take(rows * cols).collect();
    Ok(Tensor::from_vec(numbers, (rows, cols), &candle_core::Device::Cpu)?)
}

pub(crate) fn matrix<D: Driver>(
    cuda: &Cuda<D>,
    seed: u64,
    n: usize,
    k: usize,
) -> Result<CudaMatrix<D::Memory>> {
    Ok(cuda.matrix(&[random(seed, n, k)?], Dtype::Bf16.into())?)
}

/// Activations of random numbers: rows of a random table.
pub(crate) fn activations<D: Driver>(
    cuda: &mut Cuda<D>,
    seed: u64,
    rows: usize,
    cols: usize,
) -> Result<CudaBuffer<D::Memory>> {
    const TABLE: usize = 512;
    let table = matrix(cuda, seed, TABLE, cols)?;
    let mut buffer = cuda.buffer(rows, cols)?;
    let tokens: Vec<u32> = (0..rows).map(|row| (row * 7 % TABLE) as u32).collect();
    let limits = limits_of(1, rows);
    let mut cache = cuda.kv_cache(&KvLayout::uniform(1, 1, (1, 64), CacheDtype::Bf16), &limits)?;
    let mut plan = StepPlan::new(1);
    // The gather takes no notice of where tokens go.
    plan.push(0, &tokens, 0, &[&vec![0; rows.div_ceil(BLOCK_SIZE)]]);
    let mut step = cuda.step(&limits, &[])?;
    cuda.stage(&plan, &mut step, &mut cache)?;
    cuda.embedding_gather(&step, &table, 1.0, &mut buffer)?;
    Ok(buffer)
}

/// Limits of steps of whole sequences.
fn limits_of(num_seqs: usize, len: usize) -> StepLimits {
    StepLimits {
        max_num_batched_tokens: num_seqs * len,
        max_num_seqs: num_seqs,
        max_model_len: len,
    }
}

/// A step that is staged.
fn staged<D: Driver>(
    cuda: &mut Cuda<D>,
    params: &AttentionParams,
    limits: &StepLimits,
    plan: &StepPlan,
    cache: &mut CudaKvCache<D::Memory>,
) -> Result<CudaStep<D::Memory>> {
    let mut step = cuda.step(limits, &[AttentionKind { params: *params, group: 0 }])?;
    cuda.stage(plan, &mut step, cache)?;
    Ok(step)
}

fn elementwise<D: Driver>(cuda: &mut Cuda<D>, sizes: &Sizes, dry_run: bool) -> Result<()> {
    let &Sizes { tokens, hidden, intermediate, .. } = sizes;
    let turns = if dry_run { 1 } else { TURNS };
    for &rows in sizes.norm_rows {
        let inputs = (0..turns)
            .map(|turn| activations(cuda, turn as u64, rows, hidden))
            .collect::<Result<Vec<_>>>()?;
        let mut outputs =
            (0..turns).map(|_| cuda.buffer(rows, hidden)).collect::<Result<Vec<_>, _>>()?;
        let norm = cuda.vector(&[random(9, 1, hidden)?.flatten_all()?])?;
        let time = seconds(cuda, dry_run, |cuda, call| {
            let turn = call % turns;
            cuda.rms_norm(rows, &inputs[turn], &norm, 1e-5, &mut outputs[turn])
        })?;
        let name = match rows.cmp(&tokens) {
            Ordering::Less => format!("few rows' rms_norm, {rows}"),
            Ordering::Equal => "rms_norm".to_owned(),
            Ordering::Greater => format!("rms_norm {rows}"),
        };
        result(&name, time, 2 * rows * hidden * 2, 0.0);
    }

    // The gates are measured with a product of k = 8 before them, whose time is taken away.
    let narrow = 8;
    let x = activations(cuda, 20, tokens, narrow)?;
    let w = matrix(cuda, 21, 2 * intermediate, narrow)?;
    let mut gates = cuda.buffer(tokens, intermediate)?;
    let mut both = cuda.buffer(tokens, 2 * intermediate)?;
    let silu = Activation::Silu;
    let with = seconds(cuda, dry_run, |cuda, _| {
        cuda.linear_gated(tokens, &x, &w, None, silu, Some(&mut both), &mut gates)
    })?;
    let product = seconds(cuda, dry_run, |cuda, _| cuda.linear(tokens, &x, &w, None, &mut both))?;
    let time = (with - product).max(with * 1e-3);
    result("silu_mul", time, 3 * tokens * intermediate * 2, 0.0);
    drop((gates, both));

    let params = attention_params(4);
    let heads = params.num_heads + 2 * params.num_kv_heads;
    let cols = heads * params.head_dim;
    let mut inputs = (0..turns)
        .map(|turn| activations(cuda, 30 + turn as u64, tokens, cols))
        .collect::<Result<Vec<_>>>()?;
    let rope = cuda.vector(&[random(31, tokens, params.head_dim)?.flatten_all()?])?;
    let limits = limits_of(1, tokens);
    let mut cache = cuda.kv_cache(&layout(&params, 1, limits.blocks_per_seq()), &limits)?;
    let mut plan = StepPlan::new(1);
    let blocks: Vec<u32> = (0..).take(limits.blocks_per_seq()).collect();
    plan.push(0, &vec![0; tokens], 0, &[&blocks]);
    let step = staged(cuda, &params, &limits, &plan, &mut cache)?;
    let time = seconds(cuda, dry_run, |cuda, call| {
        let qkv = &mut inputs[call % turns];
        cuda.rope_and_cache(&step, &params, &rope, None, 0, qkv, &mut cache)
    })?;
    let written = tokens * cols * 2;
    let angles = tokens * params.head_dim * 4;
    result("rope_and_cache", time, tokens * cols * 2 + written + angles, 0.0);
    Ok(())
}

fn products<D: Driver>(cuda: &mut Cuda<D>, sizes: &Sizes, dry_run: bool) -> Result<()> {
    let &Sizes { hidden, intermediate, .. } = sizes;
    let turns = if dry_run { 1 } else { TURNS };
    for (name, n, k) in [("gate_up", 2 * intermediate, hidden), ("down", hidden, intermediate)] {
        let weights = (0..turns)
            .map(|turn| matrix(cuda, 40 + turn as u64, n, k))
            .collect::<Result<Vec<_>>>()?;
        for &rows in sizes.gemm_rows {
            let x = activations(cuda, 50, rows, k)?;
            let mut out = cuda.buffer(rows, n)?;
            let time = seconds(cuda, dry_run, |cuda, call| {
                cuda.linear(rows, &x, &weights[call % turns], None, &mut out)
            })?;
            let operations = 2.0 * rows as f64 * n as f64 * k as f64;
            result(
                &format!("linear {name} {rows}"),
                time,
                (n * k + rows * (n + k)) * 2,
                operations,
            );
        }
    }
    Ok(())
}

/// 32 heads of 128, of which `group` share one of K and V.
fn attention_params(group: usize) -> AttentionParams {
    AttentionParams {
        num_heads: 32,
        num_kv_heads: 32 / group,
        head_dim: 128,
        scale: 128_f32.sqrt().recip(),
        mask: Mask::Causal,
        soft_cap: None,
    }
}

/// Layers in bf16.
fn layout(params: &AttentionParams, num_layers: usize, num_blocks: usize) -> KvLayout {
    let heads = (params.num_kv_heads, params.head_dim);
    KvLayout::uniform(num_layers, num_blocks, heads, CacheDtype::Bf16)
}

/// A cache of random keys and values, all blocks of all layers.
fn filled_cache<D: Driver>(
    cuda: &mut Cuda<D>,
    params: &AttentionParams,
    layout: &KvLayout,
    limits: &StepLimits,
) -> Result<CudaKvCache<D::Memory>> {
    let cols = (params.num_heads + 2 * params.num_kv_heads) * params.head_dim;
    let rows = limits.blocks_per_seq() * BLOCK_SIZE;
    let mut cache = cuda.kv_cache(layout, limits)?;
    let rope = cuda.vector(&[random(61, rows, params.head_dim)?.flatten_all()?])?;
    let blocks: Vec<u32> = (0..).take(layout.num_blocks).collect();
    for (turn, blocks) in blocks.chunks(limits.blocks_per_seq()).enumerate() {
        let mut qkv = activations(cuda, 60 + turn as u64 % 5, rows, cols)?;
        let mut plan = StepPlan::new(1);
        plan.push(0, &vec![0; blocks.len() * BLOCK_SIZE], 0, &[blocks]);
        let step = staged(cuda, params, limits, &plan, &mut cache)?;
        for layer in 0..layout.layers.len() {
            cuda.rope_and_cache(&step, params, &rope, None, layer, &mut qkv, &mut cache)?;
        }
    }
    Ok(cache)
}

fn decode<D: Driver>(
    cuda: &mut Cuda<D>,
    group: usize,
    (num_seqs, context): (usize, usize),
    dtype: CacheDtype,
    dry_run: bool,
) -> Result<()> {
    // No cache of a device holds so much.
    const BEYOND_CACHES: usize = 256 << 20;
    let params = attention_params(group);
    let limits = limits_of(num_seqs, context.next_multiple_of(BLOCK_SIZE));
    let blocks_per_seq = limits.blocks_per_seq();
    let bytes = num_seqs * context * 2 * params.num_kv_heads * params.head_dim * dtype.size();
    // Layers take turns.
    let num_layers = if dry_run { 1 } else { BEYOND_CACHES.div_ceil(bytes) };
    let layout = KvLayout { dtype, ..layout(&params, num_layers, num_seqs * blocks_per_seq) };
    let mut cache = filled_cache(cuda, &params, &layout, &limits)?;
    let cols = (params.num_heads + 2 * params.num_kv_heads) * params.head_dim;
    let qkv = activations(cuda, 70, num_seqs, cols)?;
    let mut out = cuda.buffer(num_seqs, params.num_heads * params.head_dim)?;
    let mut plan = StepPlan::new(1);
    for s in 0..num_seqs {
        // A sequence's blocks lie apart.
        let blocks: Vec<u32> =
            (0..blocks_per_seq).map(|block| (block * num_seqs + s) as u32).collect();
        plan.edit_table(0, s as u32, 0, &blocks);
        plan.push(s as u32, &[0], context - 1, &[&blocks]);
    }
    let step = staged(cuda, &params, &limits, &plan, &mut cache)?;
    let time = seconds(cuda, dry_run, |cuda, call| {
        cuda.paged_attention(&step, &params, call % num_layers, &qkv, &cache, &mut out)
    })?;
    let fp8 = if dtype == CacheDtype::Fp8E4m3 { ", fp8 cache" } else { "" };
    let name = format!("decode attention, {num_seqs} x {context}, GQA {group}{fp8}");
    result(&name, time, bytes, 0.0);
    Ok(())
}

/// Decodes with their first tokens in common, read by each of them and once for all.
fn decode_shared<D: Driver>(
    cuda: &mut Cuda<D>,
    group: usize,
    (num_seqs, context, shared): (usize, usize, usize),
    dry_run: bool,
) -> Result<()> {
    let params = attention_params(group);
    let limits = limits_of(num_seqs, context.next_multiple_of(BLOCK_SIZE));
    let of_shared = shared / BLOCK_SIZE;
    let of_own = limits.blocks_per_seq() - of_shared;
    let layout = layout(&params, 1, of_shared + num_seqs * of_own);
    let mut cache = filled_cache(cuda, &params, &layout, &limits)?;
    let cols = (params.num_heads + 2 * params.num_kv_heads) * params.head_dim;
    let qkv = activations(cuda, 90, num_seqs, cols)?;
    let mut out = cuda.buffer(num_seqs, params.num_heads * params.head_dim)?;
    let mut plan = StepPlan::new(1);
    for s in 0..num_seqs {
        let own = of_shared + s * of_own..of_shared + (s + 1) * of_own;
        let blocks: Vec<u32> = (0..of_shared).chain(own).map(|block| block as u32).collect();
        plan.edit_table(0, s as u32, 0, &blocks);
        plan.push(s as u32, &[0], context - 1, &[&blocks]);
    }
    // Each token once.
    let tokens = shared + num_seqs * (context - shared);
    let bytes = tokens * 2 * params.num_kv_heads * params.head_dim * CacheDtype::Bf16.size();
    for together in [false, true] {
        if together {
            let all: Vec<u32> = (0..num_seqs as u32).collect();
            plan.share_prefix(0, shared, &all);
        }
        let step = staged(cuda, &params, &limits, &plan, &mut cache)?;
        let time = seconds(cuda, dry_run, |cuda, _| {
            cuda.paged_attention(&step, &params, 0, &qkv, &cache, &mut out)
        })?;
        let by = if together { "once for all" } else { "by each" };
        let name = format!(
            "shared decode attention, {num_seqs} x {context}, GQA {group}: {shared} read {by}"
        );
        result(&name, time, bytes, 0.0);
    }
    Ok(())
}

/// A prompt's last `new` tokens, after `cached` ones, by each of the forms.
fn prefill<D: Driver>(
    cuda: &mut Cuda<D>,
    group: usize,
    (new, cached): (usize, usize),
    forms: &[Option<PromptForm>],
    dry_run: bool,
) -> Result<()> {
    let params = attention_params(group);
    let limits = limits_of(1, (new + cached).next_multiple_of(BLOCK_SIZE));
    let layout = layout(&params, 1, limits.blocks_per_seq());
    let mut cache = filled_cache(cuda, &params, &layout, &limits)?;
    let cols = (params.num_heads + 2 * params.num_kv_heads) * params.head_dim;
    let qkv = activations(cuda, 80, new, cols)?;
    let mut out = cuda.buffer(new, params.num_heads * params.head_dim)?;
    let blocks: Vec<u32> = (0..).take(limits.blocks_per_seq()).collect();
    let mut plan = StepPlan::new(1);
    plan.edit_table(0, 0, 0, &blocks);
    plan.push(0, &vec![0; new], cached, &[&blocks]);
    let step = staged(cuda, &params, &limits, &plan, &mut cache)?;
    // Two products over what is cached, and over half of a square.
    let seen = new as f64 * (cached as f64 + (new as f64 + 1.0) / 2.0);
    let operations = 4.0 * seen * (params.num_heads * params.head_dim) as f64;
    let after = if cached > 0 { format!(" after {cached}") } else { String::new() };
    for &form in forms {
        cuda.use_prompt_form(form);
        let time = seconds(cuda, dry_run, |cuda, _| {
            cuda.paged_attention(&step, &params, 0, &qkv, &cache, &mut out)
        })?;
        let by = form.map_or_else(String::new, |form| format!(", by {form}"));
        result(&format!("prefill attention, {new}{after}, GQA {group}{by}"), time, 0, operations);
    }
    cuda.use_prompt_form(None);
    Ok(())
}
