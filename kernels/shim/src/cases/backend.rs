//! The CUDA backend, whole, beside the CPU's: the same operations on the same batches,
//! with the kernels in the shim.

use candle_core::Tensor;
use half::bf16;
use sconce_kernels::{
    Activation, AttentionKind, AttentionParams, Backend, CacheDtype, Device as _, Dtype,
    KernelError, KvLayer, KvLayout, Mask, Ops as _, Routing, Sampler as _, StepLimits, StepPlan,
    cpu::{Cpu, CpuConfig},
    cuda::{Cuda, Driver, GemvForm, ProductForm},
    ops::sampling::{Logprobs, SampleRequest, Sampled},
    reference,
};

use super::element::numbers;

const HIDDEN: usize = 128;
const INTERMEDIATE: usize = 96;
const VOCAB: usize = 300;
const CAP: f32 = 4.0;
const PARAMS: AttentionParams = AttentionParams {
    num_heads: 6,
    num_kv_heads: 2,
    head_dim: 64,
    scale: 0.3,
    mask: Mask::Causal,
    soft_cap: None,
};
/// What the other group's layer does, beside the first's.
const LOCAL: AttentionParams = AttentionParams { mask: Mask::Sliding(21), ..PARAMS };
/// All of them, since one more or less that is close would make another sum.
const ROUTING: Routing = Routing { num_experts: 3, top_k: 3, normalise: true };
const LIMITS: StepLimits =
    StepLimits { max_num_batched_tokens: 64, max_num_seqs: 4, max_model_len: 320 };

/// A random weight that bf16 and f16 hold without loss.
pub(super) fn tensor(seed: u64, shape: &[usize]) -> Tensor {
    let exact = |x: &f32| bf16::from_f32((x * 64.0).round() / 64.0).to_f32();
    let x: Vec<f32> = numbers(seed, shape.iter().product()).iter().map(exact).collect();
    Tensor::from_vec(x, shape, &candle_core::Device::Cpu).expect("the shape fits")
}

/// What one step left: activations by name, and what was drawn.
struct Seen {
    activations: Vec<(&'static str, Vec<f32>)>,
    uncapped: Vec<f32>,
    logits: Vec<f32>,
    sampled: Vec<Sampled>,
    logprobs: Vec<Logprobs>,
}

/// A layer of a model over steps, each operation once at least: with attention over all,
/// and with attention to a window, in a cache group of its own.
struct Layer<B: Backend> {
    backend: B,
    cache: B::KvCache,
    step: B::Step,
    table: B::Matrix,
    norm: B::Vector,
    qkv: (B::Matrix, B::Vector),
    rope: B::Vector,
    head_norms: (B::Vector, B::Vector),
    o: (B::Matrix, B::Vector),
    gate_up: (B::Matrix, B::Vector),
    down: B::Matrix,
    router: B::Matrix,
    experts: [B::Matrix; 2],
}

impl<B: Backend> Layer<B> {
    fn new(mut backend: B, dtype: Dtype, cache: CacheDtype) -> Result<Self, KernelError> {
        let AttentionParams { num_heads, num_kv_heads, head_dim, .. } = PARAMS;
        let heads = (num_heads + 2 * num_kv_heads) * head_dim;
        let angles = (0..LIMITS.max_model_len).flat_map(|position| {
            let angle = move |i: usize| position as f32 * 0.9_f32.powi(i as i32);
            let half = head_dim / 2;
            let cosines = (0..half).map(move |i| angle(i).cos());
            cosines.chain((0..half).map(move |i| angle(i).sin()))
        });
        let layer = |group, region| KvLayer { group, region, num_kv_heads, head_dim };
        // The first and the last share a region.
        let layers = vec![layer(0, 0), layer(0, 1), layer(1, 0)];
        let layout = KvLayout { num_blocks: 40, num_groups: 2, layers, dtype: cache };
        let kinds =
            [(PARAMS, 0), (LOCAL, 1)].map(|(params, group)| AttentionKind { params, group });
        let step = backend.step(&LIMITS, &kinds)?;
        let matrix = |seed, n, k| {
            let parts = [tensor(seed, &[n / 2, k]), tensor(seed + 50, &[n - n / 2, k])];
            backend.matrix(&parts, dtype.into())
        };
        let vector = |seed, n| backend.vector(&[tensor(seed, &[n])]);
        Ok(Self {
            cache: backend.kv_cache(&layout, &LIMITS)?,
            step,
            table: matrix(1, VOCAB, HIDDEN)?,
            norm: vector(2, HIDDEN)?,
            qkv: (matrix(3, heads, HIDDEN)?, vector(4, heads)?),
            rope: backend.vector(&[Tensor::from_iter(angles, &candle_core::Device::Cpu)?])?,
            head_norms: (vector(5, head_dim)?, vector(6, head_dim)?),
            o: (matrix(7, HIDDEN, num_heads * head_dim)?, vector(8, HIDDEN)?),
            gate_up: (matrix(9, 2 * INTERMEDIATE, HIDDEN)?, vector(10, 2 * INTERMEDIATE)?),
            down: matrix(11, HIDDEN, INTERMEDIATE)?,
            router: matrix(12, ROUTING.num_experts, HIDDEN)?,
            experts: [
                matrix(13, ROUTING.num_experts * 2 * INTERMEDIATE, HIDDEN)?,
                matrix(14, ROUTING.num_experts * HIDDEN, INTERMEDIATE)?,
            ],
            backend,
        })
    }

    fn step(
        &mut self,
        plan: &StepPlan,
        requests: &[SampleRequest<'_>],
    ) -> Result<Seen, KernelError> {
        let AttentionParams { num_heads, num_kv_heads, head_dim, .. } = PARAMS;
        let Self { backend, step, cache, .. } = self;
        let rows = plan.num_tokens();
        let capacity = LIMITS.max_num_batched_tokens;
        let heads = (num_heads + 2 * num_kv_heads) * head_dim;
        let mut hidden = backend.buffer(capacity, HIDDEN)?;
        let mut normed = backend.buffer(capacity, HIDDEN)?;
        let mut qkv = backend.buffer(capacity, heads)?;
        let mut attended = backend.buffer(capacity, num_heads * head_dim)?;
        let mut gated = backend.buffer(capacity, INTERMEDIATE)?;
        let mut both = match backend.gated_scratch_cols(2 * INTERMEDIATE) {
            0 => None,
            cols => Some(backend.buffer(capacity, cols)?),
        };
        let mut last = backend.buffer(4, HIDDEN)?;
        let mut logits = backend.logits_buffer(4, VOCAB)?;
        let mut activations = Vec::new();
        backend.stage(plan, step, cache)?;
        backend.embedding_gather(step, &self.table, 11.3, &mut normed)?;
        activations.push(("embedding_scaled", backend.read(&normed, rows)?));
        backend.embedding_gather(step, &self.table, 1.0, &mut hidden)?;
        activations.push(("embedding_gather", backend.read(&hidden, rows)?));
        backend.rms_norm(rows, &hidden, &self.norm, 1e-5, &mut normed)?;
        activations.push(("rms_norm", backend.read(&normed, rows)?));
        backend.linear(rows, &normed, &self.qkv.0, Some(&self.qkv.1), &mut qkv)?;
        activations.push(("linear", backend.read(&qkv, rows)?));
        // Without norms of heads, in one launch where the device has it; what it writes is written over.
        let (w, bias) = (&self.qkv.0, Some(&self.qkv.1));
        let (norm, rope) = ((&self.norm, 1e-5), &self.rope);
        let operands = (w, bias);
        if !backend
            .rope_of_normed(step, &PARAMS, &hidden, norm, operands, rope, 1, &mut qkv, cache)?
        {
            backend.linear(rows, &normed, w, bias, &mut qkv)?;
            backend.rope_and_cache(step, &PARAMS, rope, None, 1, &mut qkv, cache)?;
        }
        backend.paged_attention(step, &PARAMS, 1, &qkv, cache, &mut attended)?;
        activations.push(("rope_of_normed", backend.read(&attended, rows)?));
        let norms = Some((&self.head_norms.0, &self.head_norms.1, 1e-6));
        for (layer, params, name) in [(2, &LOCAL, "windowed"), (1, &PARAMS, "paged_attention")] {
            backend.linear(rows, &normed, &self.qkv.0, Some(&self.qkv.1), &mut qkv)?;
            let rope = &self.rope;
            backend.rope_and_cache(step, params, rope, norms, layer, &mut qkv, cache)?;
            backend.paged_attention(step, params, layer, &qkv, cache, &mut attended)?;
            activations.push((name, backend.read(&attended, rows)?));
        }
        backend.linear_add(rows, &attended, &self.o.0, Some(&self.o.1), &mut hidden)?;
        activations.push(("linear_add", backend.read(&hidden, rows)?));
        backend.rms_norm(rows, &hidden, &self.norm, 1e-5, &mut normed)?;
        let (weight, bias) = &self.gate_up;
        for (act, name) in [(Activation::GeluTanh, "gelu"), (Activation::Silu, "silu")] {
            let (bias, both) = (Some(bias), both.as_mut());
            backend.linear_gated(rows, &normed, weight, bias, act, both, &mut gated)?;
            activations.push((name, backend.read(&gated, rows)?));
        }
        backend.linear_add(rows, &gated, &self.down, None, &mut hidden)?;
        backend.rms_norm_add(rows, &normed, &self.norm, 1e-5, &mut hidden)?;
        activations.push(("rms_norm_add", backend.read(&hidden, rows)?));
        // Of rows that get logits, the first is of no sequence's last token.
        let lasts = &plan.logit_rows[1..];
        backend.gather_rows(step, 1..plan.logit_rows.len(), &hidden, &mut last)?;
        activations.push(("gather_rows", backend.read(&last, lasts.len())?));
        let Routing { num_experts, top_k, .. } = ROUTING;
        let mut scores = backend.logits_buffer(capacity, num_experts)?;
        let mut routes = backend.routes(capacity, ROUTING)?;
        let mut chosen = backend.buffer(capacity, top_k * INTERMEDIATE)?;
        let mut outputs = backend.buffer(capacity, top_k * HIDDEN)?;
        let [gate_up, down] = &self.experts;
        backend.linear(rows, &normed, &self.router, None, &mut scores)?;
        backend.route(rows, &scores, &mut routes)?;
        let silu = Activation::Silu;
        backend.experts_gated(rows, &normed, &routes, gate_up, silu, &mut chosen)?;
        backend.experts_add(rows, &chosen, &routes, down, &mut outputs, &mut hidden)?;
        activations.push(("experts", backend.read(&hidden, rows)?));
        backend.linear(lasts.len(), &last, &self.table, None, &mut logits)?;
        let uncapped = backend.read(&logits, lasts.len())?;
        backend.soft_cap(lasts.len(), CAP, &mut logits)?;
        let read = backend.read(&logits, lasts.len())?;
        let mut logprobs = Vec::new();
        let tokens: Vec<u32> = (0..).take(lasts.len()).map(|i| i * 70).collect();
        let num_top: Vec<u32> = (0..).take(lasts.len()).collect();
        backend.logprobs(&logits, &tokens, &num_top, &mut logprobs)?;
        let mut sampled = Vec::new();
        backend.sample(&mut logits, requests, &mut sampled)?;
        Ok(Seen { activations, uncapped, logits: read, sampled, logprobs })
    }
}

/// Steps of so many tokens from a position on, for each sequence: a prompt beside one in
/// its second chunk and a decode; then decodes of all; then a slot's next sequence.
fn plans() -> Vec<StepPlan> {
    // By group; the second's first block is given up once the window has left it, and is
    // another sequence's from then on.
    let tables: [[&[u32]; 3]; 2] =
        [[&[7, 2, 30], &[39, 0, 11, 12], &[5]], [&[8, 3, 31], &[38, 1, 13, 14], &[8]]];
    let tokens = |seed: u32, len: u32| (0..len).map(|i| (seed + i * 37) % 300).collect::<Vec<_>>();
    let mut plans = Vec::new();
    let mut known = [[0; 3]; 2];
    for pieces in [
        [(33, 0), (0, 0), (0, 0)],
        [(0, 0), (40, 0), (0, 0)],
        [(8, 33), (20, 40), (0, 0)],
        [(1, 41), (1, 60), (16, 0)],
        [(1, 42), (1, 61), (0, 16)],
    ] {
        let mut plan = StepPlan::new(2);
        for (s, (len, computed)) in pieces.into_iter().enumerate().filter(|(_, (len, _))| *len > 0)
        {
            let slot = 2 - s as u32;
            for (group, known) in known.iter_mut().enumerate() {
                let table = tables[group][s];
                let covered = (computed + len as usize).div_ceil(16);
                plan.edit_table(group as u32, slot, known[s], &table[known[s]..covered]);
                known[s] = covered;
            }
            let tables = [tables[0][s], tables[1][s]];
            plan.push(slot, &tokens(computed as u32 + len, len), computed, &tables);
        }
        plan.logit_rows.push(0);
        plan.logit_rows.extend(plan.cu_seqlens_q[1..].iter().map(|end| end - 1));
        plans.push(plan);
    }
    // Of slot 2's old table the second entry is of no use to the new sequence.
    let mut last = StepPlan::new(2);
    for (group, block) in [(0, 20), (1, 21)] {
        last.edit_table(group, 2, 0, &[block]);
    }
    last.push(2, &tokens(9, 11), 0, &[&[20], &[21]]);
    last.logit_rows = vec![0, 10];
    plans.push(last);
    plans
}

/// The distance of two vectors beside the second's length.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let wide = |x: &[f32]| x.iter().copied().map(f64::from).collect::<Vec<_>>();
    let (got, want) = (wide(got), wide(want));
    norm(&mut got.iter().zip(&want).map(|(got, want)| got - want)) / norm(&mut want.into_iter())
}

/// Every operation of a layer, on several steps, gives what it gives on the CPU;
/// `device` starts a device.
///
/// # Panics
/// If it does not.
pub fn a_layer_over_ragged_batches_is_the_cpus<D: Driver>(device: impl Fn() -> D) {
    // Products of few rows, where there are any, by their own kernel.
    let few_rows = Some(ProductForm::FewRows(GemvForm::DEFAULT));
    for (dtype, cache, tolerance, products) in [
        (Dtype::Bf16, CacheDtype::Bf16, 2e-2, few_rows),
        (Dtype::Bf16, CacheDtype::Bf16, 2e-2, Some(ProductForm::Skinny)),
        (Dtype::F16, CacheDtype::F16, 3e-3, None),
        // Three bits of mantissa.
        (Dtype::Bf16, CacheDtype::Fp8E4m3, 8e-2, None),
    ] {
        let cpu = Cpu::new(CpuConfig::default());
        let mut want = Layer::new(cpu, Dtype::F32, CacheDtype::F32).expect("the CPU's layer");
        let mut cuda = Cuda::new(device(), dtype, LIMITS).expect("the backend");
        cuda.use_product_form(products);
        cuda.use_rotation(Some(true));
        let mut got = Layer::new(cuda, dtype, cache).expect("the device's layer");
        for (index, plan) in plans().iter().enumerate() {
            let request = SampleRequest { num_logprobs: Some(2), ..SampleRequest::default() };
            let requests = vec![request; plan.num_seqs()];
            let want = want.step(plan, &requests).expect("the CPU's step");
            let got = got.step(plan, &requests).expect("the device's step");
            for ((op, got), (_, want)) in got.activations.iter().zip(&want.activations) {
                let far = distance(got, want);
                // Heads that are not normed have larger scores.
                let scores = if *op == "rope_of_normed" { 2.0 } else { 1.0 };
                assert!(
                    far <= tolerance * scores,
                    "{dtype:?}, {cache:?}, step {index}, {op}: {far}"
                );
            }
            check_samples(&got);
        }
    }
}

/// What was drawn and scored fits the logits it came from.
fn check_samples(seen: &Seen) {
    let uncapped: Vec<f64> = seen.uncapped.iter().copied().map(f64::from).collect();
    let capped = reference::soft_cap(&uncapped, f64::from(CAP));
    for (got, want) in seen.logits.iter().zip(capped) {
        assert!((f64::from(*got) - want).abs() <= want.abs() * 1e-6, "{got}, not {want}");
    }
    let rows = seen.logits.chunks_exact(VOCAB);
    for (i, (row, (sampled, scored))) in
        rows.zip(seen.sampled.iter().zip(&seen.logprobs)).enumerate()
    {
        let wide: Vec<f64> = row.iter().copied().map(f64::from).collect();
        let want = reference::log_softmax(&wide);
        let near = |token: u32, logprob: f32| {
            let want = want[token as usize];
            assert!((f64::from(logprob) - want).abs() < 1e-3, "{logprob}, not {want}");
        };
        let best = (0..VOCAB).max_by(|&a, &b| wide[a].total_cmp(&wide[b]).then(b.cmp(&a)));
        let Sampled::Token { token, logprobs: Some(logprobs) } = sampled else {
            panic!("row {i} gave {sampled:?}");
        };
        assert_eq!(Some(*token as usize), best);
        near(*token, logprobs.logprob);
        assert_eq!(logprobs.top[0], (*token, logprobs.logprob));
        assert_eq!((scored.token as usize, scored.top.len()), (i * 70, i));
        near(scored.token, scored.logprob);
        let own = row[i * 70];
        let before = row.iter().zip(0..).filter(|&(&x, id)| x > own || x == own && id < i * 70);
        assert_eq!(scored.rank, Some(before.count() as u32 + 1), "row {i}");
        for &(token, logprob) in &scored.top {
            near(token, logprob);
        }
    }
}

/// What a backend cannot do it says.
///
/// # Panics
/// If it does not.
pub fn what_does_not_fit_is_refused_by_name<D: Driver>(device: impl Fn() -> D) {
    let new = |dtype| Cuda::new(device(), dtype, LIMITS);
    let refused = new(Dtype::F32).err().expect("no tensor core multiplies f32");
    assert!(refused.to_string().contains("float32"), "{refused}");
    let mut cuda = new(Dtype::Bf16).expect("the backend");
    let layout = |head_dim, dtype| KvLayout::uniform(1, 1, (1, head_dim), dtype);
    for (layout, word) in [
        (layout(64, CacheDtype::F16), "F16"),
        (layout(64, CacheDtype::F32), "F32"),
        (layout(48, CacheDtype::Bf16), "head_dim 48"),
    ] {
        let refused = cuda.kv_cache(&layout, &LIMITS).err().expect(word);
        assert!(refused.to_string().contains(word), "{refused}");
    }
    let odd = cuda.matrix(&[tensor(1, &[4, 12])], Dtype::Bf16.into());
    assert!(odd.err().expect("12 columns").to_string().contains("multiple of 8"));
    // More rows than the limits.
    let mut cache = cuda.kv_cache(&layout(64, CacheDtype::Bf16), &LIMITS).expect("it fits");
    let params = AttentionParams { num_heads: 1, num_kv_heads: 1, ..PARAMS };
    let kind = AttentionKind { params, group: 0 };
    let mut step = cuda.step(&LIMITS, &[kind]).expect("it fits");
    let mut plan = StepPlan::new(1);
    plan.push(0, &[1; 65], 0, &[&[0; 5]]);
    let refused = cuda.stage(&plan, &mut step, &mut cache).expect_err("65 rows");
    assert!(refused.to_string().contains("rows is 65"), "{refused}");
    // A vocabulary of more slices than there is room for.
    let mut logits = cuda.logits_buffer(1, 40 * 8192 + 1).expect("room");
    let refused = cuda.sample(&mut logits, &[SampleRequest::default()], &mut Vec::new());
    assert!(refused.expect_err("too wide").to_string().contains("the vocabulary"));
    // A token outside the table, a position beyond RoPE's.
    let table = cuda.matrix(&[tensor(1, &[4, 16])], Dtype::Bf16.into()).expect("packs");
    let mut out = cuda.buffer(4, 16).expect("room");
    plan.clear();
    plan.push(0, &[3, 4], 0, &[&[0]]);
    cuda.stage(&plan, &mut step, &mut cache).expect("it fits");
    let refused =
        cuda.embedding_gather(&step, &table, 1.0, &mut out).expect_err("there is no row 4");
    assert!(refused.to_string().contains("a token id is 4"), "{refused}");
    // A way to attend that the step has no plan for, a cache that it was not staged for.
    let qkv = cuda.buffer(4, 3 * 64).expect("room");
    let mut out = cuda.buffer(4, 64).expect("room");
    let other = AttentionParams { mask: Mask::None, ..params };
    let refused = cuda.paged_attention(&step, &other, 0, &qkv, &cache, &mut out);
    assert!(refused.expect_err("no plan").to_string().contains("way to attend"));
    cuda.paged_attention(&step, &params, 0, &qkv, &cache, &mut out).expect("it fits");
    let cache = cuda.kv_cache(&layout(64, CacheDtype::Bf16), &LIMITS).expect("it fits");
    let refused = cuda.paged_attention(&step, &params, 0, &qkv, &cache, &mut out);
    assert!(refused.expect_err("another cache").to_string().contains("staged for"));
}
