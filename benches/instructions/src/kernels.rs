//! Operations of a step on one thread, with named instruction sets: callgrind
//! knows none beyond AVX2.
//!
//! Everything runs once before it is counted, since buffers grow at first. The
//! shapes are SmolLM2-135M's, but narrow where what is done once a call, or
//! once a row, is to have weight in the count.

use std::hint::black_box;

use candle_core::{Device, Tensor};
use sconce_kernels::{
    AttentionKind, AttentionParams, CacheDtype, Device as _, KvLayout, Mask, Ops as _,
    Sampler as _, StepLimits, StepPlan, WeightDtype,
    cpu::{Cpu, CpuBuffer, CpuConfig, Isa},
    ops::sampling::SampleRequest,
};

use crate::counted;

pub(crate) const AVX2: Isa = Isa::Avx2;
pub(crate) const PORTABLE: Isa = Isa::Portable;
pub(crate) const BF16: WeightDtype = WeightDtype::Bf16;
pub(crate) const INT8: WeightDtype = WeightDtype::Int8;

const HIDDEN: usize = 576;
const HEADS: AttentionParams = AttentionParams {
    num_heads: 9,
    num_kv_heads: 3,
    head_dim: 64,
    scale: 0.125,
    mask: Mask::Causal,
    soft_cap: None,
};

/// A hidden layer's product for one row; `copy` copies as many bytes as the
/// weight has in bf16.
pub(crate) fn linear_1_row(isa: Isa, dtype: WeightDtype, copy: bool) {
    linear(isa, dtype, 1, HIDDEN, copy.then_some(HIDDEN * HIDDEN / 2));
}

/// A narrow product for eight rows; `copy` copies the input.
pub(crate) fn linear_8_rows(isa: Isa, dtype: WeightDtype, copy: bool) {
    linear(isa, dtype, 8, 16, copy.then_some(8 * HIDDEN));
}

/// Weights `[n, HIDDEN]`; `copy` is how many words of four bytes are copied more.
fn linear(isa: Isa, dtype: WeightDtype, rows: usize, n: usize, copy: Option<usize>) {
    let mut cpu = cpu(isa);
    let weight = Tensor::from_vec(numbers(n * HIDDEN), (n, HIDDEN), &Device::Cpu).expect("it fits");
    let weight = cpu.matrix(&[weight], dtype).expect("it is packed");
    let x = filled(&cpu, rows, HIDDEN);
    let mut out = cpu.buffer(rows, n).expect("memory");
    let copied = copy.map(numbers);
    cpu.linear(rows, &x, &weight, None, &mut out).expect("shapes fit");
    counted(|| {
        if let Some(copied) = &copied {
            black_box(copied.clone());
        }
        cpu.linear(rows, &x, &weight, None, &mut out).expect("shapes fit");
    });
    black_box(out.rows(rows));
}

/// Four sequences decode over 128 cached tokens each; `copy` copies as many
/// bytes as one of them has cached.
pub(crate) fn paged_attention(isa: Isa, copy: bool) {
    const SEQS: u32 = 4;
    const CONTEXT: usize = 128;
    const BLOCKS: u32 = CONTEXT as u32 / 16;
    const QKV: usize = (9 + 2 * 3) * 64;
    let mut cpu = cpu(isa);
    let heads = (HEADS.num_kv_heads, HEADS.head_dim);
    let layout = KvLayout::uniform(1, (SEQS * BLOCKS) as usize, heads, CacheDtype::Bf16);
    let limits = StepLimits {
        max_num_batched_tokens: SEQS as usize * CONTEXT,
        max_num_seqs: SEQS as usize,
        max_model_len: CONTEXT,
    };
    let mut cache = cpu.kv_cache(&layout, &limits).expect("memory");
    let mut step = cpu.step(&limits, &[AttentionKind { params: HEADS, group: 0 }]).expect("memory");
    let rope = numbers(CONTEXT * HEADS.head_dim);
    let (mut prefill, mut decode) = (StepPlan::new(1), StepPlan::new(1));
    for seq in 0..SEQS {
        let blocks: Vec<u32> = (seq * BLOCKS..(seq + 1) * BLOCKS).collect();
        prefill.edit_table(0, seq, 0, &blocks);
        prefill.push(seq, &[0; CONTEXT - 1], 0, &[&blocks]);
        decode.push(seq, &[0], CONTEXT - 1, &[&blocks]);
    }
    for plan in [&prefill, &decode] {
        let mut qkv = filled(&cpu, plan.num_tokens(), QKV);
        cpu.stage(plan, &mut step, &mut cache).expect("it fits");
        cpu.rope_and_cache(&step, &HEADS, &rope, None, 0, &mut qkv, &mut cache).expect("it fits");
    }
    let qkv = filled(&cpu, decode.num_tokens(), QKV);
    let mut out =
        cpu.buffer(decode.num_tokens(), HEADS.num_heads * HEADS.head_dim).expect("memory");
    let copied = copy.then(|| vec![1_u8; layout.block_bytes() * BLOCKS as usize]);
    cpu.paged_attention(&step, &HEADS, 0, &qkv, &cache, &mut out).expect("shapes fit");
    counted(|| {
        if let Some(copied) = &copied {
            black_box(copied.clone());
        }
        cpu.paged_attention(&step, &HEADS, 0, &qkv, &cache, &mut out).expect("shapes fit");
    });
    black_box(out.rows(decode.num_tokens()));
}

/// The likeliest of 4,096 tokens, for eight rows.
pub(crate) fn sample_greedy(isa: Isa) {
    const ROWS: usize = 8;
    let mut cpu = cpu(isa);
    let mut logits = filled(&cpu, ROWS, 4096);
    let mut out = Vec::with_capacity(2 * ROWS);
    let requests = [SampleRequest::default(); ROWS];
    cpu.sample(&mut logits, &requests, &mut out).expect("shapes fit");
    counted(|| cpu.sample(&mut logits, &requests, &mut out).expect("shapes fit"));
    black_box(out);
}

fn cpu(isa: Isa) -> Cpu {
    assert!(Isa::available().contains(&isa), "counting needs a processor with {}", isa.name());
    Cpu::new(CpuConfig { threads: Some(1), isa: Some(isa) })
}

fn filled(cpu: &Cpu, rows: usize, cols: usize) -> CpuBuffer {
    let mut buffer = cpu.buffer(rows, cols).expect("memory");
    buffer.rows_mut(rows).copy_from_slice(&numbers(rows * cols));
    buffer
}

/// Numbers between -1 and 1 without a pattern.
fn numbers(len: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let next = || {
        // Numerical Recipes' linear congruential generator.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}
