//! The backends under test, and their inputs.

use candle_core::Tensor;
use half::{bf16, f16};
use sconce_kernels::{
    CacheDtype, Device as _, Dtype, KvLayout, StepLimits, StepPlan,
    cpu::{Cpu, CpuBuffer, CpuConfig, CpuStep, Isa},
    ops::sampling::uniform,
};

/// A backend for each instruction set that the machine has.
pub(crate) fn every_isa() -> impl Iterator<Item = Cpu> {
    Isa::available().into_iter().map(|isa| cpu(isa, 2))
}

pub(crate) fn cpu(isa: Isa, threads: usize) -> Cpu {
    Cpu::new(CpuConfig { threads: Some(threads), isa: Some(isa) })
}

/// Numbers in [-1, 1), the same for the same seed.
pub(crate) fn numbers(seed: u64, len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (uniform(seed, i) * 2.0 - 1.0) as f32).collect()
}

pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}

/// What an operation makes of its input where it meets elements of `dtype`.
pub(crate) fn rounded(x: &[f32], dtype: Dtype) -> Vec<f32> {
    match dtype {
        Dtype::F32 => x.to_vec(),
        Dtype::F16 => x.iter().map(|&x| f16::from_f32(x).to_f32()).collect(),
        Dtype::Bf16 => x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
    }
}

pub(crate) fn tensor(data: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(data, shape, &candle_core::Device::Cpu).expect("a tensor of its own shape")
}

/// A buffer of exactly these rows.
pub(crate) fn buffer(cpu: &Cpu, data: &[f32], cols: usize) -> CpuBuffer {
    let rows = data.len() / cols;
    let mut buffer = cpu.buffer(rows, cols).expect("memory");
    buffer.rows_mut(rows).copy_from_slice(data);
    buffer
}

/// A staged step of one sequence of at most 16 tokens, for operations that have no use for
/// a cache.
pub(crate) fn step(cpu: &mut Cpu, token_ids: &[u32], logit_rows: &[u32]) -> CpuStep {
    let limits = StepLimits { max_num_batched_tokens: 16, max_num_seqs: 1, max_model_len: 16 };
    let layout = KvLayout::uniform(1, 1, (1, 16), CacheDtype::F32);
    let mut cache = cpu.kv_cache(&layout, &limits).expect("memory");
    let mut plan = StepPlan::new(1);
    plan.push(0, token_ids, 0, &[&[0]]);
    plan.logit_rows.extend_from_slice(logit_rows);
    let mut step = cpu.step(&limits, &[]).expect("memory");
    cpu.stage(&plan, &mut step, &mut cache).expect("the plan fits");
    step
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Asserts `|got - want| <= tolerance(i)` everywhere, and that nothing is NaN.
pub(crate) fn assert_close(
    what: &str,
    got: &[f32],
    want: &[f64],
    tolerance: impl Fn(usize) -> f64,
) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= tolerance(i), "{what}: element {i} is {got}, not {want}");
    }
}
