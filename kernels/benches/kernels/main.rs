//! How fast the operations are, beside what the machine could do.
//!
//! `cargo bench -p sconce-kernels [-- THREADS ISA PART…]` prints, for the shapes of
//! SmolLM2-135M, the memory bandwidth and arithmetic that each operation
//! reaches, after the same machine's ceilings measured in the same run (with
//! `ceilings` for a part, nothing but those). Weights
//! and caches are larger than the last-level cache, as a whole model's are.
#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

mod ceiling;

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use sconce_kernels::{
    AttentionKind, AttentionParams, BLOCK_SIZE, Device as _, Dtype, KvLayout, Mask, Ops as _,
    Sampler as _, StepLimits, StepPlan, WeightDtype,
    cpu::{Cpu, CpuBuffer, CpuConfig, Isa, ThreadPool},
    ops::sampling::{SampleRequest, uniform},
};

const HIDDEN: usize = 576;
const INTERMEDIATE: usize = 1536;
const VOCAB_SIZE: usize = 49_152;
const HEADS: AttentionParams = AttentionParams {
    num_heads: 9,
    num_kv_heads: 3,
    head_dim: 64,
    scale: 0.125,
    mask: Mask::Causal,
    soft_cap: None,
};
const QKV: usize = (9 + 2 * 3) * 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Cargo passes `--bench`.
    let threads = std::env::args().skip(1).find_map(|arg| arg.parse().ok());
    let named: Vec<_> = std::env::args().skip(1).collect();
    let isa = Isa::LEVELS.iter().find(|isa| named.iter().any(|arg| arg == isa.flag()));
    let mut cpu = Cpu::new(CpuConfig { threads, isa: isa.map(|isa| isa.or_lower()) });
    println!("{}", cpu.describe());
    let threads = threads.or(std::thread::available_parallelism().map(Into::into).ok());
    ceiling::print(&ThreadPool::new(threads.unwrap_or(1)));
    let parts: [(&str, Part); 4] = [
        ("linear", linear),
        ("attention", attention),
        ("elementwise", elementwise),
        ("sampling", sampling),
    ];
    if named.iter().any(|arg| arg == "ceilings") {
        return Ok(());
    }
    let none = !parts.iter().any(|(name, _)| named.iter().any(|arg| arg == name));
    for (name, part) in parts {
        if none || named.iter().any(|arg| arg == name) {
            part(&mut cpu)?;
        }
    }
    Ok(())
}

type Part = fn(&mut Cpu) -> Result<(), Box<dyn std::error::Error>>;

/// Seconds of one call: the median of many, after a warm-up.
pub(crate) fn seconds(mut call: impl FnMut()) -> f64 {
    let mut times = Vec::new();
    let started = Instant::now();
    call();
    while times.len() < 5 || (started.elapsed() < Duration::from_millis(300) && times.len() < 2_000)
    {
        let started = Instant::now();
        call();
        times.push(started.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}

fn numbers(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (uniform(0, i) * 2.0 - 1.0) as f32).collect()
}

fn filled(cpu: &Cpu, rows: usize, cols: usize) -> Result<CpuBuffer, Box<dyn std::error::Error>> {
    let mut buffer = cpu.buffer(rows, cols)?;
    buffer.rows_mut(rows).copy_from_slice(&numbers(rows * cols));
    Ok(buffer)
}

fn linear(cpu: &mut Cpu) -> Result<(), Box<dyn std::error::Error>> {
    for dtype in [WeightDtype::Int8, WeightDtype::Bf16, WeightDtype::F32] {
        println!("\nlinear, {dtype:?} weights");
        println!(
            "  {:>6} {:>6} {:>5} {:>10} {:>8} {:>9}",
            "n", "k", "rows", "µs", "GB/s", "GFLOP/s"
        );
        for (n, k) in [
            (QKV, HIDDEN),
            (HIDDEN, HIDDEN),
            (2 * INTERMEDIATE, HIDDEN),
            (HIDDEN, INTERMEDIATE),
            (VOCAB_SIZE, HIDDEN),
        ] {
            let bytes = n * k * dtype.size();
            let weight =
                Tensor::from_vec(numbers(n * k), (n, k), &Device::Cpu)?.to_dtype(DType::BF16)?;
            let copies = usize::div_ceil(160 << 20, bytes);
            let matrices = (0..copies)
                .map(|_| cpu.matrix(std::slice::from_ref(&weight), dtype))
                .collect::<Result<Vec<_>, _>>()?;
            for rows in [1, 2, 4, 8, 16, 32, 64, 128, 512] {
                if n == VOCAB_SIZE && rows > 64 {
                    continue;
                }
                let x = filled(cpu, rows, k)?;
                let mut out = cpu.buffer(rows, n)?;
                let mut next = matrices.iter().cycle();
                let seconds = seconds(|| {
                    let matrix = next.next().expect("a cycle has no end");
                    cpu.linear(rows, &x, matrix, None, &mut out).expect("shapes fit");
                });
                println!(
                    "  {n:>6} {k:>6} {rows:>5} {:>10.1} {:>8.1} {:>9.1}",
                    seconds * 1e6,
                    bytes as f64 / seconds * 1e-9,
                    (2 * n * k * rows) as f64 / seconds * 1e-9,
                );
            }
        }
    }
    Ok(())
}

fn attention(cpu: &mut Cpu) -> Result<(), Box<dyn std::error::Error>> {
    const LAYERS: usize = 30;
    for dtype in [Dtype::Bf16, Dtype::F32] {
        println!("\nattention, {dtype:?} cache, 9 heads over 3, of 64");
        println!(
            "  {:>5} {:>7} {:>7} {:>10} {:>8} {:>9} {:>14}",
            "seqs", "new", "context", "µs", "GB/s", "GFLOP/s", "rope+cache µs"
        );
        for (seqs, new, context) in [
            (1, 1, 128),
            (1, 1, 1024),
            (32, 1, 128),
            (32, 1, 1024),
            (1, 128, 128),
            (1, 512, 512),
            (1, 512, 2048),
            (4, 128, 512),
        ] {
            let blocks_each = usize::div_ceil(context, BLOCK_SIZE);
            let limits = StepLimits {
                max_num_batched_tokens: seqs * new,
                max_num_seqs: seqs,
                max_model_len: context,
            };
            let heads = (HEADS.num_kv_heads, HEADS.head_dim);
            let layout = KvLayout::uniform(LAYERS, seqs * blocks_each, heads, dtype.into());
            let mut cache = cpu.kv_cache(&layout, &limits)?;
            cache.poison(0.5);
            let mut plan = StepPlan::new(1);
            for seq in 0..seqs {
                let blocks: Vec<u32> =
                    (seq * blocks_each..(seq + 1) * blocks_each).map(|b| b as u32).collect();
                plan.edit_table(0, seq as u32, 0, &blocks);
                plan.push(seq as u32, &vec![0; new], context - new, &[&blocks]);
            }
            let mut step = cpu.step(&limits, &[AttentionKind { params: HEADS, group: 0 }])?;
            cpu.stage(&plan, &mut step, &mut cache)?;
            let rows = seqs * new;
            let mut qkv = filled(cpu, rows, QKV)?;
            let mut out = cpu.buffer(rows, HEADS.num_heads * HEADS.head_dim)?;
            let rope = numbers(4096 * HEADS.head_dim);
            let mut layers = (0..LAYERS).cycle();
            let rope_seconds = seconds(|| {
                let layer = layers.next().expect("a cycle has no end");
                cpu.rope_and_cache(&step, &HEADS, &rope, None, layer, &mut qkv, &mut cache)
                    .expect("shapes fit");
            });
            let seconds = seconds(|| {
                let layer = layers.next().expect("a cycle has no end");
                cpu.paged_attention(&step, &HEADS, layer, &qkv, &cache, &mut out)
                    .expect("shapes fit");
            });
            let bytes = seqs * context * 2 * HEADS.num_kv_heads * HEADS.head_dim * dtype.size();
            let pairs = rows * (context - new) + seqs * new * (new + 1) / 2;
            println!(
                "  {seqs:>5} {new:>7} {context:>7} {:>10.1} {:>8.1} {:>9.1} {:>14.1}",
                seconds * 1e6,
                bytes as f64 / seconds * 1e-9,
                (4 * pairs * HEADS.num_heads * HEADS.head_dim) as f64 / seconds * 1e-9,
                rope_seconds * 1e6,
            );
        }
    }
    Ok(())
}

fn elementwise(cpu: &mut Cpu) -> Result<(), Box<dyn std::error::Error>> {
    println!("\nelementwise, µs");
    println!("  {:>5} {:>9}", "rows", "rms_norm");
    let weight = numbers(HIDDEN);
    for rows in [1, 8, 64, 512] {
        let x = filled(cpu, rows, HIDDEN)?;
        let mut normed = cpu.buffer(rows, HIDDEN)?;
        let norm = seconds(|| {
            cpu.rms_norm(rows, &x, &weight, 1e-5, &mut normed).expect("shapes fit");
        });
        println!("  {rows:>5} {:>9.1}", norm * 1e6);
    }
    Ok(())
}

fn sampling(cpu: &mut Cpu) -> Result<(), Box<dyn std::error::Error>> {
    const ROWS: usize = 16;
    println!("\nsampling from {VOCAB_SIZE} logits, µs a row in a batch of {ROWS}");
    let greedy = SampleRequest::default();
    let warm = SampleRequest { temperature: 1.0, ..greedy };
    for (what, request) in [
        ("greedy", greedy),
        ("greedy, 5 logprobs", SampleRequest { num_logprobs: Some(5), ..greedy }),
        ("temperature 1", warm),
        ("top_k 50", SampleRequest { top_k: 50, ..warm }),
        ("top_p 0.9", SampleRequest { top_p: 0.9, ..warm }),
        ("top_p 0.95, flat", SampleRequest { top_p: 0.95, temperature: 20.0, ..warm }),
        ("min_p 0.05", SampleRequest { min_p: 0.05, ..warm }),
        ("top_k 50, top_p 0.9", SampleRequest { top_k: 50, top_p: 0.9, ..warm }),
    ] {
        let logits: Vec<f32> =
            numbers(ROWS * VOCAB_SIZE).iter().map(|x| x.powi(3) * 15.0).collect();
        let mut buffer = cpu.buffer(ROWS, VOCAB_SIZE)?;
        buffer.rows_mut(ROWS).copy_from_slice(&logits);
        let mut out = Vec::new();
        let seconds = seconds(|| {
            out.clear();
            cpu.sample(&mut buffer, &[request; ROWS], &mut out).expect("shapes fit");
        });
        println!("  {what:<20} {:>9.1}", seconds * 1e6 / ROWS as f64);
    }
    Ok(())
}
