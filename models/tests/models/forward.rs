//! The forward pass against a plain one in f64, whole and in pieces.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Tensor};
use sconce_kernels::{
    Activation, AttentionKind, AttentionParams, Device, Dtype, KvLayout, StepLimits, StepPlan,
    WeightDtype,
    cpu::{Cpu, CpuConfig},
    reference,
};
use sconce_models::{Checkpoint, Loaded, Model, ModelSpec, Pass, Workspace};

use crate::tiny::{
    self, GEMMA, GEMMA_CAP, GEMMA_FACTOR, GEMMA_LOCAL_THETA, GEMMA_SCALAR, Random, Tiny,
};

const MAX_TOKENS: usize = 64;

/// A model, its cache and its workspace.
pub(crate) struct Runner {
    cpu: Cpu,
    model: Box<dyn Model<Cpu>>,
    spec: ModelSpec,
    cache: <Cpu as Device>::KvCache,
    step: <Cpu as Device>::Step,
    workspace: Workspace<Cpu>,
}

fn load(dir: &Path, cpu: &Cpu, weights: WeightDtype, max_positions: usize) -> Loaded<Cpu> {
    Checkpoint::open(dir).unwrap().load(cpu, weights, max_positions, &mut |_, _| {}).unwrap()
}

impl Runner {
    pub(crate) fn new(dir: &Path, dtype: Dtype) -> Self {
        Self::with_weights(dir, dtype, dtype.into())
    }

    fn with_weights(dir: &Path, dtype: Dtype, weights: WeightDtype) -> Self {
        let mut cpu = Cpu::new(CpuConfig { threads: Some(2), ..CpuConfig::default() });
        let Loaded { model, spec, .. } = load(dir, &cpu, weights, MAX_TOKENS);
        let AttentionParams { num_kv_heads, head_dim, .. } = spec.cache_layers[0];
        let layers = spec.cache_layers.len();
        let layout = KvLayout::uniform(layers, 12, (num_kv_heads, head_dim), dtype.into());
        let limits = StepLimits {
            max_num_batched_tokens: MAX_TOKENS,
            max_num_seqs: 2,
            max_model_len: MAX_TOKENS,
        };
        let cache = cpu.kv_cache(&layout, &limits).unwrap();
        let kinds = spec.cache_layers.iter().map(|&params| AttentionKind { params, group: 0 });
        let step = cpu.step(&limits, &kinds.collect::<Vec<_>>()).unwrap();
        let workspace = Workspace::new(MAX_TOKENS, MAX_TOKENS);
        Self { cpu, model, spec, cache, step, workspace }
    }

    /// The logits of every row of a step.
    pub(crate) fn logits(&mut self, plan: &mut StepPlan) -> Vec<Vec<f32>> {
        plan.logit_rows = (0..plan.num_tokens() as u32).collect();
        self.chosen_logits(plan)
    }

    /// The logits of the plan's rows that get them.
    fn chosen_logits(&mut self, plan: &StepPlan) -> Vec<Vec<f32>> {
        let Self { cpu, model, spec, cache, step, workspace } = self;
        cpu.stage(plan, step, cache).unwrap();
        let mut pass = Pass::begin(cpu, step, plan.num_tokens(), cache, workspace);
        let hidden = model.forward(&mut pass).unwrap();
        let rows = plan.logit_rows.len();
        let chosen = pass.gather(0..rows, &hidden).unwrap();
        let logits = model.head(&mut pass, chosen).unwrap();
        let logits = cpu.read(workspace.get(&logits), rows).unwrap();
        logits.chunks(spec.vocab_size).map(<[f32]>::to_vec).collect()
    }
}

/// Appends a sequence with its whole table.
pub(crate) fn push(
    plan: &mut StepPlan,
    slot: u32,
    tokens: &[u32],
    computed: usize,
    blocks: &[u32],
) {
    plan.edit_table(0, slot, 0, blocks);
    plan.push(slot, tokens, computed, &[blocks]);
}

/// A decoder as its definition reads: one sequence, no cache, all in f64.
struct Plain<'a> {
    tiny: &'a Tiny,
    weights: HashMap<String, (Vec<f64>, usize)>,
}

impl<'a> Plain<'a> {
    fn new(tiny: &'a Tiny, tensors: &HashMap<String, Tensor>) -> Self {
        let weight = |(name, tensor): (&String, &Tensor)| {
            let cols = *tensor.dims().last().unwrap();
            let numbers = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
            (name.clone(), (numbers.to_vec1().unwrap(), cols))
        };
        Self { tiny, weights: tensors.iter().map(weight).collect() }
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (weight, cols) = &self.weights[&format!("{name}.weight")];
        let mut out: Vec<f64> =
            weight.chunks(*cols).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect();
        if let Some((bias, _)) = self.weights.get(&format!("{name}.bias")) {
            out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
        }
        out
    }

    /// The feed-forward layer below this name.
    fn gated(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let [gate, up] =
            ["gate_proj", "up_proj"].map(|part| self.linear(&format!("{name}.{part}"), x));
        let activation = if self.tiny.is_gemma() { Activation::GeluTanh } else { Activation::Silu };
        let activated = reference::gated(activation, &gate, &up);
        self.linear(&format!("{name}.down_proj"), &activated)
    }

    /// The experts below this name.
    fn experts(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let scores = self.linear(&format!("{name}.gate"), x);
        let mut order: Vec<usize> = (0..tiny::EXPERTS).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        order.truncate(tiny::EXPERTS_OF_A_TOKEN);
        let total: f64 = order.iter().map(|&expert| scores[expert].exp()).sum();
        let mut out = vec![0.0; x.len()];
        for expert in order {
            let weight = scores[expert].exp() / total;
            let of_expert = self.gated(&format!("{name}.experts.{expert}"), x);
            out.iter_mut().zip(of_expert).for_each(|(out, x)| *out += weight * x);
        }
        out
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (weight, _) = &self.weights[&format!("{name}.weight")];
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let plus = if self.tiny.is_gemma() { 1.0 } else { 0.0 };
        x.iter().zip(weight).map(|(x, w)| x / (mean + 1e-5).sqrt() * (plus + w)).collect()
    }

    /// Rotates every head of a layer's row that stands at `position`.
    fn rope(&self, layer: usize, row: &mut [f64], position: usize) {
        let (theta, factor) = match (self.tiny.is_gemma(), self.tiny.window(layer)) {
            (true, Some(_)) => (GEMMA_LOCAL_THETA, 1.0),
            (true, None) => (1000.0, GEMMA_FACTOR),
            (false, _) => (1000.0, 1.0),
        };
        let half = self.tiny.head_dim / 2;
        for head in row.chunks_mut(2 * half) {
            for i in 0..half {
                let angle = position as f64 / factor * theta.powf(-(i as f64) / half as f64);
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * angle.cos() - b * angle.sin();
                head[i + half] = b * angle.cos() + a * angle.sin();
            }
        }
    }

    fn attend(&self, layer: usize, q: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
        let Tiny { heads, kv_heads, head_dim, .. } = *self.tiny;
        let window = self.tiny.window(layer).unwrap_or(usize::MAX);
        let first = keys.len().saturating_sub(window);
        let divisor = if self.tiny.is_gemma() { GEMMA_SCALAR } else { head_dim as f64 };
        let mut out = Vec::new();
        for (head, q) in q.chunks(head_dim).enumerate() {
            let kv = head / (heads / kv_heads) * head_dim..;
            let weights: Vec<f64> = keys[first..]
                .iter()
                .map(|k| k[kv.clone()].iter().zip(q).map(|(k, q)| k * q).sum::<f64>())
                .map(|score| (score / divisor.sqrt()).exp())
                .collect();
            let total: f64 = weights.iter().sum();
            for i in 0..head_dim {
                let at = kv.start + i;
                let sum: f64 =
                    values[first..].iter().zip(&weights).map(|(v, weight)| v[at] * weight).sum();
                out.push(sum / total);
            }
        }
        out
    }

    /// The logits after every token.
    fn logits(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let hidden = self.tiny.hidden;
        let (embedding, _) = &self.weights["model.embed_tokens.weight"];
        let gemma = self.tiny.is_gemma();
        let scale = if gemma { (hidden as f64).sqrt() } else { 1.0 };
        let embed = |&token: &u32| {
            embedding[token as usize * hidden..][..hidden].iter().map(|x| x * scale).collect()
        };
        let mut rows: Vec<Vec<f64>> = tokens.iter().map(embed).collect();
        let add = |x: &mut Vec<f64>, y: Vec<f64>| x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        for layer in 0..self.tiny.layers {
            let name = |suffix: &str| format!("model.layers.{layer}.{suffix}");
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for (position, x) in rows.iter_mut().enumerate() {
                let normed = self.norm(&name("input_layernorm"), x);
                let mut q = self.linear(&name("self_attn.q_proj"), &normed);
                let mut k = self.linear(&name("self_attn.k_proj"), &normed);
                if self.tiny.has_head_norms() {
                    for (heads, norm) in [(&mut q, "q_norm"), (&mut k, "k_norm")] {
                        for head in heads.chunks_mut(self.tiny.head_dim) {
                            let normed = self.norm(&name(&format!("self_attn.{norm}")), head);
                            head.copy_from_slice(&normed);
                        }
                    }
                }
                self.rope(layer, &mut q, position);
                self.rope(layer, &mut k, position);
                keys.push(k);
                values.push(self.linear(&name("self_attn.v_proj"), &normed));
                let attended = self.attend(layer, &q, &keys, &values);
                let mut attended = self.linear(&name("self_attn.o_proj"), &attended);
                if gemma {
                    attended = self.norm(&name("post_attention_layernorm"), &attended);
                }
                add(x, attended);
                let before =
                    if gemma { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
                let normed = self.norm(&name(before), x);
                let mut out = if self.tiny.is_mixture() && layer > 0 {
                    self.experts(&name("mlp"), &normed)
                } else {
                    self.gated(&name("mlp"), &normed)
                };
                if gemma {
                    out = self.norm(&name("post_feedforward_layernorm"), &out);
                }
                add(x, out);
            }
        }
        let head = if self.tiny.tied { "model.embed_tokens" } else { "lm_head" };
        let logits = |x: &Vec<f64>| self.linear(head, &self.norm("model.norm", x));
        let cap =
            |logits: Vec<f64>| if gemma { reference::soft_cap(&logits, GEMMA_CAP) } else { logits };
        rows.iter().map(logits).map(cap).collect()
    }
}

fn variants() -> [Tiny; 8] {
    let tiny = Tiny::default();
    let biased = Tiny { tied: false, biased: true, ..tiny.clone() };
    let windowed = Tiny { sliding_window: Some(9), heads: 6, kv_heads: 1, ..tiny.clone() };
    let class = Some("Qwen2ForCausalLM");
    let qwen2 = Tiny { class, tied: false, sliding_window: Some(9), ..tiny.clone() };
    let qwen3 = Tiny { class: Some("Qwen3ForCausalLM"), head_dim: 32, ..tiny.clone() };
    let class = Some("Qwen3MoeForCausalLM");
    let mixture = Tiny { class, head_dim: 32, tied: false, ..tiny.clone() };
    let gemma = Tiny { class: Some(GEMMA), layers: 3, sliding_window: Some(9), ..tiny.clone() };
    let older = Tiny { tied: false, biased: true, kv_heads: 1, older: true, ..gemma.clone() };
    [tiny, biased, windowed, qwen2, qwen3, mixture, gemma, older]
}

fn tokens(len: usize, seed: u64) -> Vec<u32> {
    let mut random = Random(seed);
    (0..len).map(|_| ((random.next() + 1.0) * 39.9) as u32).collect()
}

/// The root of the mean square error, relative to that of the reference.
fn relative_error(got: &[Vec<f32>], expected: &[Vec<f64>]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let (mut error, mut size) = (0.0, 0.0);
    for (got, expected) in got.iter().flatten().zip(expected.iter().flatten()) {
        error += (f64::from(*got) - expected).powi(2);
        size += expected.powi(2);
    }
    (error / size).sqrt()
}

#[test]
fn logits_agree_with_a_plain_forward_pass() {
    for tiny in variants() {
        let dir = tempfile::tempdir().unwrap();
        let tensors = tiny.write(dir.path());
        let tokens = tokens(37, 3);
        let expected = Plain::new(&tiny, &tensors).logits(&tokens);
        let mut batch = StepPlan::new(1);
        push(&mut batch, 0, &tokens, 0, &[5, 1, 3]);
        // f32 rounds to 6e-8, bf16 to 4e-3, int8 to 1 / 254 of a row's largest
        // number; errors grow over the layers.
        for (dtype, weights, limit) in [
            (Dtype::F32, WeightDtype::F32, 2e-6),
            (Dtype::Bf16, WeightDtype::Bf16, 2e-2),
            (Dtype::Bf16, WeightDtype::Int8, 4e-2),
            (Dtype::F32, WeightDtype::Int8, 4e-2),
        ] {
            let got = Runner::with_weights(dir.path(), dtype, weights).logits(&mut batch);
            let error = relative_error(&got, &expected);
            assert!(error < limit, "{tiny:?} in {dtype:?}, {weights:?}: relative error {error:e}");
        }
    }
}

/// What transformers 5.17's `tie_weights` does of a config.json that ties the output to the
/// embedding: two different matrices stay two, equal ones are one, and one alone is both.
#[test]
fn tied_weights_are_those_that_the_checkpoint_has() {
    let tied = Tiny::default();
    let untied = Tiny { tied: false, ..tied.clone() };
    let tokens = tokens(11, 3);
    let mut batch = StepPlan::new(1);
    push(&mut batch, 0, &tokens, 0, &[5]);
    let (embed, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let own = untied.tensors();
    let mut copied = own.clone();
    copied.insert(head.into(), own[embed].clone());
    let mut alone = copied.clone();
    alone.remove(embed);
    for (what, saved, used, is_told) in [
        ("a head of its own", &own, &own, true),
        ("a copy", &copied, &copied, false),
        ("the head alone", &alone, &copied, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        tiny::write_config(dir.path(), &tied.config());
        candle_core::safetensors::save(saved, dir.path().join("model.safetensors")).unwrap();
        let expected = Plain::new(&untied, used).logits(&tokens);
        let got = Runner::new(dir.path(), Dtype::F32).logits(&mut batch);
        let error = relative_error(&got, &expected);
        assert!(error < 2e-6, "{what}: relative error {error:e}");

        let cpu = Cpu::new(CpuConfig { threads: Some(1), ..CpuConfig::default() });
        let loaded = load(dir.path(), &cpu, WeightDtype::F32, 16);
        assert_eq!(loaded.warnings.iter().any(|told| told.contains(head)), is_told, "{what}");
        let shapes = if is_told { untied.shapes() } else { tied.shapes() };
        let matrices = shapes.iter().filter(|(_, shape)| shape.len() == 2);
        let elements: usize = matrices.map(|(_, shape)| shape[0] * shape[1]).sum();
        assert_eq!(loaded.weight_bytes, 4 * elements, "{what}: stored once or twice");
    }
}

/// Experts one by one, as checkpoints on the hub have them, or all in two tensors.
#[test]
fn experts_may_be_stacked_in_the_checkpoint() {
    let tiny = Tiny { class: Some("Qwen3MoeForCausalLM"), ..Tiny::default() };
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = tiny.write(dir.path());
    let mut batch = StepPlan::new(1);
    push(&mut batch, 0, &tokens(21, 3), 0, &[5, 1]);
    let expected = Runner::new(dir.path(), Dtype::F32).logits(&mut batch);
    let below = "model.layers.1.mlp.experts";
    let mut stack = |names: &[&str]| {
        let mut of_expert = |expert| {
            let parts = names.iter().map(|name| format!("{below}.{expert}.{name}.weight"));
            let parts: Vec<_> = parts.map(|name| tensors.remove(&name).unwrap()).collect();
            Tensor::cat(&parts, 0).unwrap()
        };
        let experts: Vec<_> = (0..tiny::EXPERTS).map(&mut of_expert).collect();
        Tensor::stack(&experts, 0).unwrap()
    };
    let (gate_up, down) = (stack(&["gate_proj", "up_proj"]), stack(&["down_proj"]));
    tensors.insert(format!("{below}.gate_up_proj"), gate_up);
    tensors.insert(format!("{below}.down_proj"), down.clone());
    let save = |tensors: &HashMap<String, Tensor>| {
        candle_core::safetensors::save(tensors, dir.path().join("model.safetensors")).unwrap();
    };
    save(&tensors);
    assert_eq!(Runner::new(dir.path(), Dtype::F32).logits(&mut batch), expected);
    // Half of it is no layer.
    tensors.remove(&format!("{below}.down_proj"));
    save(&tensors);
    let cpu = Cpu::new(CpuConfig { threads: Some(1), ..CpuConfig::default() });
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let loaded = checkpoint.load(&cpu, WeightDtype::F32, 16, &mut |_, _| {});
    let error = loaded.err().expect("down_proj is missing").to_string();
    assert!(error.contains(&format!("{below}.down_proj [6, 48, 32] is missing")), "{error}");
}

/// The choice of experts is as exact as it can be where their weights are int8.
#[test]
fn what_chooses_experts_is_not_quantized() {
    let tiny = Tiny { class: Some("Qwen3MoeForCausalLM"), ..Tiny::default() };
    let dir = tempfile::tempdir().unwrap();
    tiny.write(dir.path());
    let cpu = Cpu::new(CpuConfig { threads: Some(1), ..CpuConfig::default() });
    let bytes = load(dir.path(), &cpu, WeightDtype::Int8, 16).weight_bytes;
    let matrices = tiny.shapes().into_iter().filter(|(_, shape)| shape.len() == 2);
    let of_matrix = |(name, shape): (String, Vec<usize>)| {
        // Panels are of 16 rows.
        if name.ends_with("mlp.gate.weight") {
            4 * 16 * shape[1]
        } else {
            (shape[1] + 8) * shape[0]
        }
    };
    assert_eq!(bytes, matrices.map(of_matrix).sum::<usize>());
}

#[test]
fn a_llama_has_no_sliding_window() {
    let tiny = Tiny { biased: true, ..Tiny::default() };
    let dir = tempfile::tempdir().unwrap();
    let tensors = tiny.write(dir.path());
    tiny::write_config(dir.path(), &Tiny { sliding_window: Some(4), ..tiny.clone() }.config());
    let tokens = tokens(21, 3);
    let mut batch = StepPlan::new(1);
    push(&mut batch, 0, &tokens, 0, &[5, 1]);
    let got = Runner::new(dir.path(), Dtype::F32).logits(&mut batch);
    let error = relative_error(&got, &Plain::new(&tiny, &tensors).logits(&tokens));
    assert!(error < 2e-6, "relative error {error:e}");
}

#[test]
fn the_bytes_of_weights_are_counted() {
    let tiny = Tiny { tied: false, ..Tiny::default() };
    let dir = tempfile::tempdir().unwrap();
    tiny.write(dir.path());
    let cpu = Cpu::new(CpuConfig { threads: Some(1), ..CpuConfig::default() });
    let shapes = tiny.shapes();
    // No shape of these needs padding.
    let sum = |size: fn(&[usize]) -> usize| -> usize {
        shapes.iter().filter(|(_, shape)| shape.len() == 2).map(|(_, shape)| size(shape)).sum()
    };
    let (elements, outputs) = (sum(|shape| shape[0] * shape[1]), sum(|shape| shape[0]));
    for (dtype, bytes) in [
        (WeightDtype::F32, 4 * elements),
        (WeightDtype::Bf16, 2 * elements),
        (WeightDtype::Int8, elements + 8 * outputs),
    ] {
        let loaded = load(dir.path(), &cpu, dtype, 16);
        assert_eq!(loaded.weight_bytes, bytes, "{dtype:?}");
    }
}

#[test]
fn chunks_and_company_change_no_bit() {
    for tiny in variants() {
        let dir = tempfile::tempdir().unwrap();
        tiny.write(dir.path());
        let (mine, other) = (tokens(37, 3), tokens(30, 4));
        for (dtype, weights) in [
            (Dtype::F32, WeightDtype::F32),
            (Dtype::Bf16, WeightDtype::Bf16),
            (Dtype::Bf16, WeightDtype::Int8),
        ] {
            let mut alone = StepPlan::new(1);
            push(&mut alone, 0, &mine, 0, &[5, 1, 3]);
            let expected = Runner::with_weights(dir.path(), dtype, weights).logits(&mut alone);

            let mut runner = Runner::with_weights(dir.path(), dtype, weights);
            let (mut done, mut other_done) = (0, 0);
            let mut batch = StepPlan::new(1);
            for (step, chunk) in [16, 5, 1, 1, 10, 1, 1, 1, 1].into_iter().enumerate() {
                batch.clear();
                let other_chunk = [7, 0, 1, 16, 1, 1, 1, 1, 1][step];
                let neighbour = &other[other_done..other_done + other_chunk];
                if other_chunk > 0 && step % 2 == 0 {
                    push(&mut batch, 1, neighbour, other_done, &[2, 9]);
                }
                let first = batch.num_tokens();
                push(&mut batch, 0, &mine[done..done + chunk], done, &[8, 0, 7]);
                if other_chunk > 0 && step % 2 == 1 {
                    push(&mut batch, 1, neighbour, other_done, &[2, 9]);
                }
                let got = runner.logits(&mut batch);
                let bits = |row: &Vec<f32>| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                for i in 0..chunk {
                    let (got, expected) = (bits(&got[first + i]), bits(&expected[done + i]));
                    assert_eq!(got, expected, "{weights:?}: position {}", done + i);
                }
                done += chunk;
                other_done += other_chunk;
            }
            assert_eq!(done, mine.len());
        }
    }
}

/// A layer that read a buffer which it or another gave back, or never wrote, would change
/// bits: every buffer is NaN when it is given back.
#[test]
fn no_layer_counts_on_what_a_buffer_held() {
    for tiny in variants() {
        let dir = tempfile::tempdir().unwrap();
        tiny.write(dir.path());
        let mut batch = StepPlan::new(1);
        push(&mut batch, 0, &tokens(37, 3), 0, &[5, 1, 3]);
        let expected = Runner::new(dir.path(), Dtype::F32).logits(&mut batch);
        let mut runner = Runner::new(dir.path(), Dtype::F32);
        runner.workspace.poison_freed(|buffer| {
            buffer.rows_mut(buffer.capacity()).fill(f32::NAN);
        });
        for _ in 0..2 {
            assert_eq!(runner.logits(&mut batch), expected, "{tiny:?}");
            // The first pass took all that a pass takes.
            runner.workspace.freeze();
        }
        // Residual, what is read of it, Q with K and V, heads, gated; then the row of
        // hidden states that logits are of, beside both, and the logits.
        let Tiny { hidden, intermediate, vocab, heads, kv_heads, head_dim, .. } = tiny;
        let q = heads * head_dim;
        let qkv = q + 2 * kv_heads * head_dim;
        let top_k = tiny::EXPERTS_OF_A_TOKEN;
        // Scores, and of each choice what is gated and what comes of it.
        let of_experts = [tiny::EXPERTS, top_k * tiny::EXPERT, top_k * hidden];
        let of_experts = if tiny.is_mixture() { &of_experts[..] } else { &[] };
        let dense = [hidden, hidden, qkv, q, intermediate];
        let mut columns = [&dense[..], of_experts, &[hidden, vocab]].concat();
        let mut taken = runner.workspace.columns();
        // In which order is a layer's own affair.
        columns.sort_unstable();
        taken.sort_unstable();
        assert_eq!(taken, columns);
    }
}

#[test]
fn logits_of_chosen_rows_come_in_the_order_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    Tiny::default().write(dir.path());
    let mut runner = Runner::new(dir.path(), Dtype::F32);
    let mut batch = StepPlan::new(1);
    push(&mut batch, 0, &tokens(9, 1), 0, &[4]);
    let all = runner.logits(&mut batch);
    batch.logit_rows = vec![8, 0, 8];
    let got = runner.chosen_logits(&batch);
    assert_eq!(got, [all[8].clone(), all[0].clone(), all[8].clone()]);
}

#[test]
fn a_batch_that_exceeds_its_limits_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    Tiny::default().write(dir.path());
    let Runner { mut cpu, model, mut cache, mut step, mut workspace, .. } =
        Runner::new(dir.path(), Dtype::F32);
    let mut refused = |tokens: &[u32], computed: usize| {
        let mut plan = StepPlan::new(1);
        plan.push(0, tokens, computed, &[&[0, 1, 2, 3, 4, 5, 6, 7]]);
        if let Err(error) = cpu.stage(&plan, &mut step, &mut cache) {
            return error.to_string();
        }
        let rows = plan.num_tokens();
        let mut pass = Pass::begin(&mut cpu, &step, rows, &mut cache, &mut workspace);
        model.forward(&mut pass).unwrap_err().to_string()
    };
    let error = refused(&tokens(MAX_TOKENS + 1, 1), 0);
    assert!(error.contains("rows is 65"), "{error}");
    let error = refused(&[80], 0);
    assert!(error.contains("80"), "{error}");
    let error = refused(&[1], MAX_TOKENS);
    assert!(error.contains("position"), "{error}");
}
